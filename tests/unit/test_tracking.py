"""Tracking against real MLflow stores: a SQLite database, a server that is away, and the same server coming back."""

import json
import math
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.entities import Metric
from mlflow.tracking import MlflowClient
from pydantic import SecretStr

from drgrpo.tracking import Tracker, TrackingError, check_tracking_uri, deliver_spools, policy_path
from drgrpo.tracking.context import environment_tags, finite_metrics, flat_params, is_secret, mask, metric_key
from drgrpo.tracking.spool import Spool, Unreachable
from drgrpo.tracking.store import MlflowStore


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database; migrating takes seconds, copying does not."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    check_tracking_uri(f"sqlite:///{path}")
    return path


@pytest.fixture
def uri(empty_database: Path, tmp_path: Path) -> str:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


def start(uri: str, tmp_path: Path, run_id: str | None = None, **changes: object) -> Tracker:
    arguments = {"params": {}, "tags": {}, "system_metrics": False} | changes
    return Tracker.start(
        uri, "quickstart", "brave-run", run_id=run_id, spool_dir=tmp_path / "spool",
        artifact_location=(tmp_path / "artifacts").as_uri(), **arguments,
    )  # fmt: skip


def points(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in MlflowClient(uri).get_metric_history(run_id, key)]


def test_a_run_holds_its_metrics_parameters_tags_and_status(uri: str, tmp_path: Path) -> None:
    params = {"optimizer": {"lr": 1e-6}, "reward": {"functions": {"gsm8k": 1.0}}, "stop": ["</answer>"]}
    tracker = start(uri, tmp_path, params=params, tags={"prefect.flow_run_url": "http://127.0.0.1:4200/runs/x"})
    tracker.log_metrics({"reward/mean": 0.25, "seconds/rollout": 3}, step=0)
    tracker.log_metrics({"reward/mean": 0.5}, step=1)
    assert tracker.finish() == 0

    run = MlflowClient(uri).get_run(tracker.run_id)
    assert points(uri, tracker.run_id, "reward/mean") == [(0, 0.25), (1, 0.5)]
    assert run.data.params == {"optimizer.lr": "1e-06", "reward.functions.gsm8k": "1.0", "stop": "['</answer>']"}
    assert run.data.tags["mlflow.note.content"] == "[Prefect flow run](http://127.0.0.1:4200/runs/x)"
    assert run.data.tags["version.mlflow"].startswith("3.")
    assert (run.info.status, run.info.run_name) == ("FINISHED", "brave-run")
    assert tracker.run_url("http://127.0.0.1:5000/") == (
        f"http://127.0.0.1:5000/#/experiments/{run.info.experiment_id}/runs/{tracker.run_id}"
    )


def test_a_resumed_run_keeps_its_points_and_gets_no_doubled_one(uri: str, tmp_path: Path) -> None:
    first = start(uri, tmp_path, params={"lr": 1})
    for step in range(3):
        first.log_metrics({"reward/mean": step / 10}, step)
    first.log_metrics({"evaluation/greedy": 0.5}, 2)
    first.finish("FAILED")
    shutil.rmtree(tmp_path / "spool")

    second = start(uri, tmp_path, first.run_id, params={"lr": 2, "seed": 0})
    assert second.flush() == 0
    assert MlflowClient(uri).get_run(first.run_id).info.status == "RUNNING"
    for step in range(1, 5):
        second.log_metrics({"reward/mean": step / 10, "evaluation/avg_at_k": 1.0}, step)
    second.finish()

    assert points(uri, first.run_id, "reward/mean") == [(0, 0.0), (1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    assert points(uri, first.run_id, "evaluation/avg_at_k") == [(step, 1.0) for step in range(1, 5)]
    assert second.num_skipped == 2
    assert MlflowClient(uri).get_run(first.run_id).data.params == {"lr": "1", "seed": "0"}


def test_points_that_wait_in_the_spool_are_not_logged_again_by_a_resumed_run(uri: str, tmp_path: Path) -> None:
    interrupted = start(uri, tmp_path)
    run_id = interrupted.run_id
    interrupted.finish("FAILED")
    journal = tmp_path / "spool" / f"{run_id}.jsonl"
    event = {"kind": "metrics", "run_id": run_id, "metrics": {"a": 7.0}, "step": 4, "timestamp": 1}
    with journal.open("a") as file:
        file.write(json.dumps(event) + "\n")
    tracker = start(uri, tmp_path, run_id)
    tracker.log_metrics({"a": 8.0}, 4)
    tracker.log_metrics({"a": 9.0}, 5)
    assert tracker.finish() == 0
    assert points(uri, run_id, "a") == [(4, 7.0), (5, 9.0)]


def test_an_event_delivered_twice_leaves_one_point_one_dataset_and_one_policy(uri: str, tmp_path: Path) -> None:
    tracker = start(uri, tmp_path)
    tracker.log_metrics({"evaluation/greedy": 0.25, "b": 2.0}, 3)
    tracker.log_dataset("gsm8k", "f" * 64, "/data/gsm8k", 7473)
    tracker.log_policy(tmp_path, 3, {"evaluation/greedy": 0.25})
    tracker.flush()
    events = [json.loads(line) for line in (tmp_path / "spool" / f"{tracker.run_id}.jsonl").read_text().splitlines()]
    tracker.finish()
    for event in events:
        MlflowStore(uri).apply(event)

    client = MlflowClient(uri)
    run = client.get_run(tracker.run_id)
    assert points(uri, tracker.run_id, "evaluation/greedy") == [(3, 0.25)]
    assert points(uri, tracker.run_id, "b") == [(3, 2.0)]
    assert [(i.dataset.name, i.dataset.digest) for i in run.inputs.dataset_inputs] == [("gsm8k", "f" * 32)]
    assert json.loads(run.inputs.dataset_inputs[0].dataset.profile) == {"num_rows": 7473, "digest": "f" * 64}
    assert len(client.search_logged_models([run.info.experiment_id])) == 1


def test_the_policy_is_a_logged_model_by_uri_with_its_metrics_and_is_found_again(uri: str, tmp_path: Path) -> None:
    tracker = start(uri, tmp_path)
    for step in (1, 2):
        (tmp_path / f"policy {step}").mkdir()
        tracker.log_metrics({"evaluation/greedy": step / 4}, step)
        tracker.log_policy(tmp_path / f"policy {step}", step, {"evaluation/greedy": step / 4})
    tracker.finish()

    client = MlflowClient(uri)
    run = client.get_run(tracker.run_id)
    models = {model.name: model for model in client.search_logged_models([run.info.experiment_id])}
    newest = models["policy-step-2"]
    assert policy_path(tracker.run_id, uri) == tmp_path / "policy 2"
    assert newest.params == {"uri": (tmp_path / "policy 2").as_uri(), "step": "2"} and newest.status == "READY"
    assert [(metric.key, metric.value, metric.step) for metric in newest.metrics] == [("evaluation/greedy", 0.5, 2)]
    assert {(output.model_id, output.step) for output in run.outputs.model_outputs} == {
        (models["policy-step-1"].model_id, 1),
        (newest.model_id, 2),
    }
    assert points(uri, tracker.run_id, "evaluation/greedy") == [(1, 0.25), (2, 0.5)]


def test_a_policy_that_is_not_there_is_an_error_that_says_why(uri: str, tmp_path: Path) -> None:
    tracker = start(uri, tmp_path)
    with pytest.raises(TrackingError, match="has no policy yet"):
        policy_path(tracker.run_id, uri)
    tracker.log_policy("hf://someone/policy", 1, {})
    tracker.finish()
    with pytest.raises(TrackingError, match="hf://someone/policy, which is not a directory on this machine"):
        policy_path(tracker.run_id, uri)
    with pytest.raises(TrackingError, match="not found"):
        policy_path("0" * 32, uri)


def test_texts_tables_and_files_are_artifacts_with_their_names(uri: str, tmp_path: Path) -> None:
    plot = tmp_path / "run.png"
    plot.write_bytes(b"png")
    tracker = start(uri, tmp_path)
    tracker.log_text("# Summary", "report/summary.md")
    tracker.log_table([{"step": 1, "completion": "`2`"}, {"step": 2, "reward": 1.0}], "samples/step-1.json")
    tracker.log_artifact(plot, "report")
    assert tracker.finish() == 0

    client = MlflowClient(uri)
    root = Path(client.download_artifacts(tracker.run_id, "", str(tmp_path)))
    assert (root / "report/summary.md").read_text() == "# Summary" and (root / "report/run.png").read_bytes() == b"png"
    assert json.loads((root / "samples/step-1.json").read_text()) == {
        "columns": ["step", "completion", "reward"],
        "data": [[1, "`2`", None], [2, None, 1.0]],
    }
    assert json.loads(client.get_run(tracker.run_id).data.tags["mlflow.loggedArtifacts"]) == [
        {"path": "samples/step-1.json", "type": "table"}
    ]
    assert not (tmp_path / "spool" / f"{tracker.run_id}.files").exists()


def test_values_that_are_not_finite_are_named_and_counted(uri: str, tmp_path: Path) -> None:
    assert finite_metrics({"a": 1.0, "grad_norm": math.inf, "update/kl": math.nan}) == {
        "a": 1.0,
        "nonfinite/grad_norm": 1.0,
        "nonfinite/update/kl": 1.0,
        "nonfinite/total": 2.0,
    }
    tracker = start(uri, tmp_path)
    tracker.log_metrics({"a": math.nan, "reward/my@f": 1}, 0)
    tracker.finish()
    assert MlflowClient(uri).get_run(tracker.run_id).data.metrics == {
        "nonfinite/a": 1.0,
        "nonfinite/total": 1.0,
        "reward/my_f": 1.0,
    }


def test_secrets_reach_neither_parameters_nor_tags(uri: str, tmp_path: Path) -> None:
    params = {
        "hub_token": "abc", "db": {"password": "abc"}, "apiKey": "abc", "client": {"api_key": "abc"},
        "key": SecretStr("abc"), "url": "http://me:abc@host/x", "note": "hf_" + "a" * 30,
        "rollout": {"max_completion_tokens": 8}, "loss": {"aggregation": "token_mean"},
    }  # fmt: skip
    tracker = start(uri, tmp_path, params=params, tags={"secret": "abc", "from": "https://me:abc@host"})
    tracker.finish()
    run = MlflowClient(uri).get_run(tracker.run_id)
    assert run.data.params == {
        "key": "***", "url": "http://***@host/x", "note": "***",
        "rollout.max_completion_tokens": "8", "loss.aggregation": "token_mean",
    }  # fmt: skip
    assert "secret" not in run.data.tags and run.data.tags["from"] == "https://***@host"
    assert "abc" not in (tmp_path / "spool" / f"{tracker.run_id}.jsonl").read_text()


def test_long_parameters_are_cut_with_their_length_and_many_are_logged_in_parts(uri: str, tmp_path: Path) -> None:
    tracker = start(uri, tmp_path, params={f"p{i}": i for i in range(250)} | {"long": "x" * 9000})
    assert tracker.finish() == 0
    params = MlflowClient(uri).get_run(tracker.run_id).data.params
    assert len(params) == 251 and params["long"].endswith("… (9000 characters)")


def test_words_decide_what_a_secret_is() -> None:
    assert all(map(is_secret, ["token", "hub.token", "AccessToken", "my-secret", "DB_PASSWORD", "api_key", "apikey"]))
    assert not any(map(is_secret, ["max_completion_tokens", "secretary", "key", "tokenizer", "overlong.buffer_tokens"]))
    assert mask("sqlite:////a/b@c.db") == "sqlite:////a/b@c.db"
    assert metric_key("//a@b//c.") == "a_b/c"
    assert flat_params({"a": {}, "b": {"c": None}}) == {"a": "{}", "b.c": "None"}
    assert set(environment_tags()) >= {"version.torch", "version.ray", "version.prefect", "mlflow.user"}


def test_an_event_that_mlflow_refuses_is_set_aside_and_the_next_is_delivered(uri: str, tmp_path: Path) -> None:
    tracker = start(uri, tmp_path)
    tracker.log_artifact(tmp_path / "not-there.png")
    tracker.log_metrics({"a": 1.0}, 0)
    assert tracker.finish() == 0
    refused = (tmp_path / "spool" / f"{tracker.run_id}.jsonl.refused").read_text()
    assert "not-there.png" in refused and len(refused.splitlines()) == 1
    assert points(uri, tracker.run_id, "a") == [(0, 1.0)]


def test_a_locked_database_delays_points_and_loses_none(uri: str, tmp_path: Path) -> None:
    tracker = start(uri, tmp_path)
    assert tracker.flush() == 0
    lock = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    started = time.monotonic()
    for step in range(20):
        tracker.log_metrics({"a": step}, step)
    seconds = time.monotonic() - started
    num_pending = tracker.flush(timeout_s=0.2)
    lock.execute("ROLLBACK")
    lock.close()
    assert seconds < 2.0 and num_pending == 20
    assert tracker.finish(timeout_s=60) == 0
    assert points(uri, tracker.run_id, "a") == [(step, step) for step in range(20)]


def test_system_metrics_run_with_the_run_and_go_on_after_it_is_resumed(uri: str, tmp_path: Path) -> None:
    store = MlflowStore(uri, system_metrics=True)
    run_id = start(uri, tmp_path).run_id
    client = MlflowClient(uri)
    client.log_batch(run_id, metrics=[Metric("system/cpu_utilization_percentage", 5.0, 1, 6)])
    store.put_status(run_id, "RUNNING", 1)
    assert store._monitor is not None and store._monitor._logging_step == 7
    store._monitor.collect_metrics()
    store._monitor.publish_metrics(store._monitor.aggregate_metrics())
    store.put_status(run_id, "FINISHED", 2)
    assert store._monitor is None
    steps = [step for step, _ in points(uri, run_id, "system/cpu_utilization_percentage")]
    assert steps == [6, 7]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_an_unreachable_or_unfit_tracking_uri_is_an_error_with_field_value_and_remedy(tmp_path: Path) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    started = time.monotonic()
    with pytest.raises(TrackingError, match=rf"DRGRPO_MLFLOW_URI = '{uri}': MLflow does not answer .*make serve"):
        check_tracking_uri(uri)
    assert time.monotonic() - started < 15
    with pytest.raises(TrackingError, match="neither a server nor a database"):
        check_tracking_uri("./mlruns")
    with pytest.raises(TrackingError, match=f"the folder {tmp_path}/missing is missing or not writable"):
        check_tracking_uri(f"sqlite:///{tmp_path}/missing/mlflow.db")


@pytest.fixture
def server(uri: str, tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """Address and command of an MLflow server that is not running; the test starts it."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    yield f"http://127.0.0.1:{port}", [*command, "--backend-store-uri", uri]


def wait_for(address: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=1):
                return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(address)


def test_points_logged_while_the_server_is_away_arrive_in_order_once_it_is_back(
    uri: str, tmp_path: Path, server: tuple[str, list[str]]
) -> None:
    address, command = server
    run_id = start(uri, tmp_path).run_id
    journal = tmp_path / "away" / f"{run_id}.jsonl"
    spool = Spool(journal, MlflowStore(address).apply)
    started = time.monotonic()
    for step in range(5):
        spool.append(
            {"kind": "metrics", "run_id": run_id, "metrics": {"a": step}, "step": step, "timestamp": 1000 + step}
        )
    assert time.monotonic() - started < 2.0
    assert spool.close(timeout_s=30) == 5 and time.monotonic() - started < 30
    assert points(uri, run_id, "a") == []

    process = subprocess.Popen(command, start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        wait_for(address)
        assert deliver_spools(address, journal.parent) == 0
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)
    assert points(uri, run_id, "a") == [(step, step) for step in range(5)]


def test_the_spool_repeats_from_its_cursor_and_drops_only_a_torn_line(tmp_path: Path) -> None:
    journal = tmp_path / "run.jsonl"
    lines = [json.dumps({"n": n}) + "\n" for n in range(3)]
    journal.write_text("".join(lines) + '{"n": 3, "tor')
    (tmp_path / "run.jsonl.cursor").write_text(str(len(lines[0])))
    received: list[int] = []
    spool = Spool(journal, lambda event: received.append(event["n"]))
    spool.append({"n": 4})
    assert spool.close(10) == 0
    assert received == [1, 2, 4]
    assert Spool(journal, lambda event: received.append(-1)).close(10) == 0
    assert received == [1, 2, 4]


def test_the_spool_keeps_the_order_while_the_receiver_comes_and_goes(tmp_path: Path) -> None:
    received: list[int] = []
    attempts = 0

    def deliver(event: dict[str, int]) -> None:
        nonlocal attempts
        attempts += 1
        if attempts % 3:
            raise Unreachable("away")
        received.append(event["n"])

    spool = Spool(tmp_path / "run.jsonl", deliver, retry_s=0.001)
    for n in range(10):
        spool.append({"n": n})
    deadline = time.monotonic() + 20
    while spool.num_pending and time.monotonic() < deadline:
        time.sleep(0.01)
    assert received == list(range(10)) and attempts == 30
    assert spool.close(10) == 0
