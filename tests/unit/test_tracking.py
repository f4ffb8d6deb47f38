"""Tracking against a real MLflow store, a SQLite database. A server that is away is in test_outage.py."""

import json
import math
import shutil
import sqlite3
import time
from pathlib import Path

import pytest
from mlflow.entities import Metric
from mlflow.tracking import MlflowClient
from pydantic import SecretStr
from requests import HTTPError, Response

from drgrpo.tracking import TrackingError, check_tracking_uri, policy_path
from drgrpo.tracking.context import environment_tags, finite_metrics, flat_params, is_secret, mask, metric_key
from drgrpo.tracking.spool import Unreachable
from drgrpo.tracking.store import MlflowStore
from tests.unit.tracked import free_port, points, start

SECRET = "sesame-9f2c"  # with letters that no id of a run has


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
    assert tracker.run_url("http://127.0.0.1:5000/") == f"http://127.0.0.1:5000/#/runs/{tracker.run_id}"
    assert run.data.tags["drgrpo.run_id"] == "run-1"


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


def test_a_point_that_is_delivered_while_the_run_starts_is_not_logged_again(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start(uri, tmp_path)
    run_id = first.run_id
    first.finish("FAILED")
    waiting = {"kind": "metrics", "run_id": run_id, "metrics": {"a": 7.0}, "step": 4, "timestamp": 1}
    with (tmp_path / "spool" / f"{run_id}.jsonl").open("a") as file:
        file.write(json.dumps(waiting) + "\n")
    ask = MlflowStore.last_steps

    def ask_just_before(store: MlflowStore, run: str) -> dict[str, int]:
        answer = ask(store, run)
        deadline = time.monotonic() + 3  # time for a thread that delivers, if there is one already
        while not points(uri, run_id, "a") and time.monotonic() < deadline:
            time.sleep(0.05)
        return answer

    monkeypatch.setattr(MlflowStore, "last_steps", ask_just_before)
    tracker = start(uri, tmp_path, run_id)
    tracker.log_metrics({"a": 8.0}, 4)
    assert tracker.finish() == 0
    assert points(uri, run_id, "a") == [(4, 7.0)]


def test_a_run_whose_id_was_not_kept_is_found_by_its_tag(uri: str, tmp_path: Path) -> None:
    store = MlflowStore(uri)
    made = store.run_id("run-1", store.experiment_id("quickstart", None), "brave-run")  # and then a kill
    other = start(uri, tmp_path, own_id="run-2")
    other.finish()
    tracker = start(uri, tmp_path)
    tracker.finish()
    assert tracker.run_id == made and other.run_id != made
    runs = MlflowClient(uri).search_runs([store.experiment_id("quickstart", None)])
    assert {(run.data.tags["drgrpo.run_id"], run.info.status) for run in runs} == {
        ("run-1", "FINISHED"),
        ("run-2", "FINISHED"),
    }


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


def test_tables_and_files_are_artifacts_with_their_names(uri: str, tmp_path: Path) -> None:
    plot = tmp_path / "run.png"
    plot.write_bytes(b"png")
    tracker = start(uri, tmp_path)
    tracker.log_table([{"step": 1, "completion": "`2`"}, {"step": 2, "reward": 1.0}], "samples/step-1.json")
    tracker.log_artifact(plot, "report")
    assert tracker.finish() == 0

    client = MlflowClient(uri)
    root = Path(client.download_artifacts(tracker.run_id, "", str(tmp_path)))
    assert (root / "report/run.png").read_bytes() == b"png"
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
        "hub_token": SECRET, "db": {"password": SECRET}, "apiKey": SECRET, "client": {"api_key": SECRET},
        "key": SecretStr(SECRET), "url": f"http://me:{SECRET}@host/x", "note": "hf_" + "a" * 30,
        "rollout": {"max_completion_tokens": 8}, "loss": {"aggregation": "token_mean"},
    }  # fmt: skip
    tracker = start(uri, tmp_path, params=params, tags={"secret": SECRET, "from": f"https://me:{SECRET}@host"})
    tracker.finish()
    run = MlflowClient(uri).get_run(tracker.run_id)
    assert run.data.params == {
        "key": "***", "url": "http://***@host/x", "note": "***",
        "rollout.max_completion_tokens": "8", "loss.aggregation": "token_mean",
    }  # fmt: skip
    assert "secret" not in run.data.tags and run.data.tags["from"] == "https://***@host"
    assert SECRET not in (tmp_path / "spool" / f"{tracker.run_id}.jsonl").read_text()


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


def test_an_unreachable_or_unfit_tracking_uri_is_an_error_with_field_value_and_remedy(tmp_path: Path) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    started = time.monotonic()
    with pytest.raises(TrackingError, match=rf"_MLFLOW_TRACKING_URI = '{uri}': MLflow does not answer .*make serve"):
        check_tracking_uri(uri)
    assert time.monotonic() - started < 15
    with pytest.raises(TrackingError, match="neither a server nor a database"):
        check_tracking_uri("./mlruns")
    with pytest.raises(TrackingError, match=f"the folder {tmp_path}/missing is missing or not writable"):
        check_tracking_uri(f"sqlite:///{tmp_path}/missing/mlflow.db")


@pytest.mark.parametrize(("status", "is_outage"), [(413, False), (404, False), (500, True), (503, True)])
def test_an_artifact_that_the_server_refuses_is_no_outage(uri: str, status: int, is_outage: bool) -> None:
    response = Response()
    response.status_code = status

    class Store(MlflowStore):
        def put_artifact(self, **_: object) -> None:
            raise HTTPError(response=response)

    with pytest.raises(Unreachable if is_outage else HTTPError):
        Store(uri).apply({"kind": "artifact", "run_id": "1", "path": "a", "folder": ""})
