"""The whole product on the tiny model: Prefect, MLflow, Ray, vLLM and ZeRO-3 on two ranks, nothing replaced."""

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from drgrpo.cluster.cluster import Cluster
from drgrpo.config import TrainConfig
from drgrpo.leftovers import orphans
from drgrpo.origin import Origin
from drgrpo.report import read_history
from drgrpo.tables import find_table, read_table
from flows.evaluate import evaluate
from flows.identity import Identity, identity
from flows.train import train

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("prefect_server")]

ROOT = Path(__file__).parents[2]
Options = Callable[..., dict[str, Any]]

# Names under which runs are compared; a GPU adds its memory and utilisation.
METRICS = {
    *("reward/mean", "reward/std", "reward/tests.flows.rewards:parity", "rollout/accuracy"),
    *("completion_length/mean", "completion_length/truncated", "rollout/truncated_share"),
    *("rollout/zero_variance_share", "rollout/all_right_share", "rollout/all_wrong_share"),
    *("rollout/tokens_per_s", "rollout/incomplete_groups", "rollout/lost_samples"),
    *("grader/timeouts", "grader/errors"),
    *("advantage/trained_groups", "advantage/abs_mean"),
    *("update/loss", "update/grad_norm", "update/lr", "update/entropy", "update/clip_fraction"),
    *("update/ratio_mean", "update/ratio_max", "update/tokens_per_s"),
    *("sync/mean_abs_logprob_diff", "sync/max_abs_logprob_diff", "policy_version"),
    *(f"seconds/{stage}" for stage in ("rollout", "reward", "advantage", "update", "sync", "step")),
}


@dataclass(frozen=True)
class Finished:
    """A finished run: its summary, directory and the machine's MLflow store."""

    summary: dict[str, Any]
    directory: Path
    store: Path

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        with sqlite3.connect(self.store) as connection:
            return connection.execute(sql).fetchall()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A machine whose state lies in one temporary directory for all tests of this module."""
    path = tmp_path_factory.mktemp("machine")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("DRGRPO_", "MLFLOW_TRACKING"))]:
            patch.delenv(name)
        patch.setenv("DRGRPO_ROOT", str(path))
        patch.setenv("DRGRPO_DEVICE", "cpu")
        yield path


@pytest.fixture(scope="module")
def overrides(options: Options) -> dict[str, Any]:
    return options(
        optimizer__lr=1e-3,
        trainer__num_ranks=2,
        reward__functions={"tests.flows.rewards:parity": 1.0},
        reward__truncated_reward="keep",
        rollout__sampler_logprobs=True,
        checkpoint__every_steps=1,
        evaluation__every_steps=1,
    )


@pytest.fixture(scope="module")
def finished(root: Path, overrides: dict[str, Any]) -> Finished:
    """Two steps without a disturbance."""
    return train_as("aaaaaaaa-0000-4000-8000-000000000001", root, overrides)


def train_as(run_id: str, root: Path, overrides: dict[str, Any]) -> Finished:
    """Run the flow as run `run_id`; what it leaves behind is the caller's to see."""

    def fixed(origin: Origin | None = None) -> Identity:
        return Identity(**{**identity(), "run_id": run_id})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flows.recovery.identity", fixed)
        summary = train(TrainConfig(), overrides)
    state = root / ".drgrpo"
    return Finished(summary, state / "runs" / run_id, state / "mlflow.db")


def engine_processes() -> list[str]:
    """Command lines of what this process has started and is not a service of the tests."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if any(word in command for word in ("ray::", "raylet", "gcs_server", "EngineCore", "drgrpo.rewards")):
            found.append(command)
    return found


def test_nothing_of_a_run_is_left_behind(root: Path, overrides: dict[str, Any], request: pytest.FixtureRequest) -> None:
    in_memory = set(orphans())
    assert engine_processes() == []
    request.getfixturevalue("finished")
    psutil.wait_procs(psutil.Process().children(recursive=True), timeout=3)
    assert engine_processes() == []
    assert set(orphans()) <= in_memory
    assert list(Path(tempfile.gettempdir()).glob(f"drgrpo*-{os.getpid()}-*")) == []


def test_sampler_and_trainer_agree_after_every_push(finished: Finished) -> None:
    history = read_history(finished.directory / "history.jsonl")
    assert [record["step"] for record in history] == [0, 1]
    for record in history:
        assert 0 < record["sync/mean_abs_logprob_diff"] < 1e-4
        # What was sampled is of the policy that is trained: the mismatch on the samples themselves.
        assert abs(record["update/mismatch_k1"]) < 1e-4
        assert record["advantage/trained_groups"] > 0 and record["update/grad_norm"] > 0


def test_mlflow_has_every_metric_of_every_step(finished: Finished) -> None:
    run_id = finished.summary["mlflow_run_id"]
    points = finished.query(f"select key, step from metrics where run_uuid = '{run_id}'")
    for step in (0, 1):
        assert METRICS - {key for key, at in points if at == step} == set()
    evaluated = {
        key: {at for name, at in points if name == key} for key in ("evaluation/greedy", "evaluation/avg_at_k")
    }
    assert evaluated == {"evaluation/greedy": {0, 1, 2}, "evaluation/avg_at_k": {0, 1, 2}}
    assert any(key.startswith("system/cpu") for key, _ in points)


def test_mlflow_has_data_samples_summary_and_plot(finished: Finished, overrides: dict[str, Any]) -> None:
    run_id = finished.summary["mlflow_run_id"]
    datasets = finished.query("select name, digest, dataset_source from datasets")
    train_digest = datasets[0][1]
    assert {name for name, _, _ in datasets} == {overrides["data.train"]}
    assert len(datasets) == 2 and len(train_digest) == 32
    (location,) = finished.query(f"select artifact_uri from runs where run_uuid = '{run_id}'")[0]
    artifacts = Path(location.removeprefix("file://"))
    assert {"report.png", "summary.json", "samples"} <= {path.name for path in artifacts.iterdir()}
    table = json.loads((artifacts / "samples" / "000002.json").read_text())
    assert {"prompt", "completion", "reward", "correct"} <= set(table["columns"])
    assert len(table["data"]) == 8


def test_the_tables_tell_how_each_number_came_about(finished: Finished) -> None:
    for step in (0, 1):
        ref = find_table(finished.directory / "steps" / f"{step:06d}" / "advantage.parquet")
        assert ref is not None
        rows = read_table(ref).to_pylist()
        assert len(rows) == 16 and {row["policy_version"] for row in rows} == {step}
        for row in rows:
            assert row["reward"] == float(len(row["completion"]) % 2 == 0)
            assert len(row["sampler_logprobs"]) == len(row["completion_ids"])
        for group in range(4):
            rewards = [row["reward"] for row in rows if row["group_id"] == group]
            advantages = [row["advantage"] for row in rows if row["group_id"] == group]
            assert advantages == pytest.approx([reward - sum(rewards) / 4 for reward in rewards])


def test_the_policy_loads_from_mlflow_in_three_lines_of_plain_transformers(finished: Finished) -> None:
    code = f"""
import sys, transformers
from drgrpo.tracking import policy_path
path = policy_path({finished.summary["mlflow_run_id"]!r})
model = transformers.AutoModelForCausalLM.from_pretrained(path)
tokenizer = transformers.AutoTokenizer.from_pretrained(path)
print(path, sum(p.numel() for p in model.parameters()), tokenizer.decode(tokenizer.encode("12 + 34")))
"""
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{finished.store}"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "12 + 34" in done.stdout and str(finished.directory / "policy") in done.stdout


def test_the_exported_policy_is_the_last_checkpoint_and_not_the_model_that_it_began_with(
    finished: Finished, tiny_model: Path
) -> None:
    policy, checkpoint = weights(finished.directory / "policy"), weights(finished.directory / "checkpoints/step-000002")
    assert policy.keys() == checkpoint.keys()
    for name, tensor in policy.items():
        assert np.array_equal(tensor, checkpoint[name]), name
    start = weights(tiny_model)
    assert all(not np.array_equal(tensor, start[name]) for name, tensor in policy.items())


def test_a_run_that_was_interrupted_ends_with_the_same_bits(
    finished: Finished, root: Path, overrides: dict[str, Any]
) -> None:
    run_id = "aaaaaaaa-0000-4000-8000-000000000002"
    with pytest.MonkeyPatch.context() as patch:
        update = Cluster.update

        def fail(cluster: Cluster, table: Any, step: int) -> dict[str, float]:
            if step == 1:
                raise RuntimeError("power cut")
            return update(cluster, table, step)

        patch.setattr(Cluster, "update", fail)
        with pytest.raises(RuntimeError, match="power cut"):
            train_as(run_id, root, overrides)
    assert engine_processes() == []
    (status,) = finished.query("select status from runs order by start_time desc")[0]
    assert status == "FAILED"
    resumed = train_as(run_id, root, overrides)
    assert digests(resumed.directory / "policy") == digests(finished.directory / "policy")
    assert [record["step"] for record in read_history(resumed.directory / "history.jsonl")] == [0, 1]
    for key in ("before", "after", "difference"):
        assert resumed.summary[key] == finished.summary[key]
    assert finished.query("select count(*) from runs") == [(2,)]


def test_evaluating_the_runs_policy_gives_the_numbers_of_its_last_evaluation(
    finished: Finished, overrides: dict[str, Any]
) -> None:
    metrics = evaluate(TrainConfig(), overrides, mlflow_run_id=finished.summary["mlflow_run_id"])
    assert metrics == finished.summary["after"] | {"evaluation/lost_samples": 0.0}


@pytest.mark.parametrize(("at", "step"), [("", 2), ("@1", 1)])
def test_evaluating_a_checkpoint_gives_the_numbers_of_the_evaluation_after_its_step(
    finished: Finished, overrides: dict[str, Any], at: str, step: int
) -> None:
    metrics = evaluate(
        TrainConfig(), overrides | {"data.train": "/nowhere"}, checkpoint=f"{finished.summary['run_id']}{at}"
    )
    expected = {record["step"]: record for record in read_history(finished.directory / "evaluations.jsonl")}
    assert {"step": step, **metrics} == expected[step]


def weights(directory: Path) -> dict[str, Any]:
    """All weights of a model or checkpoint directory."""
    files = sorted([*directory.glob("model*.safetensors"), *directory.glob("weights*.safetensors")])
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def digests(directory: Path) -> dict[str, str]:
    """File name to sha256."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}
