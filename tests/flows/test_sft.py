"""Order, recovery and refusals of supervised training on a cluster without engines; and the whole of it, for real."""

import json
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import FlowRunSort
from safetensors.numpy import load_file

from drgrpo.config import TrainConfig
from drgrpo.config.errors import ConfigError
from drgrpo.health import HealthStop
from drgrpo.origin import Origin
from drgrpo.preflight import checked_config
from drgrpo.report import read_history
from drgrpo.settings import load_settings
from drgrpo.tables import find_table, read_table
from flows.identity import Identity, identity
from flows.sft import sft
from tests.flows.fake_cluster import FakeCluster, Script
from tests.flows.test_train import uninterrupted_policy

pytestmark = pytest.mark.usefixtures("prefect_server")

Options = Callable[..., dict[str, Any]]
RUN_ID = "22222222-2222-4333-8444-555555555555"
SFT: dict[str, Any] = {
    "rollout.group_size": 1,
    "adv_norm.mean_level": "none",
    "loss.aggregation": "token_mean",
    "trainer.completions_per_update": 4,
}


@pytest.fixture
def same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call of the flow is the same run, as a retried flow run is."""

    def fixed(origin: Origin | None = None) -> Identity:
        return Identity(**{**identity(), "run_id": RUN_ID})

    monkeypatch.setattr("flows.recovery.identity", fixed)


def call(options: dict[str, Any], **changes: Any) -> dict[str, Any]:
    summary: dict[str, Any] = sft(TrainConfig(), options | SFT, **changes)
    return summary


def steps(first: int, last: int) -> list[str]:
    """Calls of whole steps, from `first` up to but not including `last`."""
    return [f"{stage}-{step}" for step in range(first, last) for stage in ("demonstrations", "update")]


def run_dir(machine: Path, run_id: str = RUN_ID) -> Path:
    return machine / ".drgrpo" / "runs" / run_id


def query(machine: Path, sql: str) -> list[tuple[Any, ...]]:
    """Rows of the MLflow store."""
    with sqlite3.connect(machine / ".drgrpo" / "mlflow.db") as connection:
        return connection.execute(sql).fetchall()


def test_nothing_is_sampled_and_the_sampler_is_pushed_to_only_before_it_evaluates(
    script: Script, options: Options
) -> None:
    call(options(total_steps=4, evaluation__every_steps=2, checkpoint__every_steps=3))
    assert script.calls == [
        *("start", "push-0", "evaluate-0"),
        *(*steps(0, 2), "push-2", "evaluate-2"),
        *(*steps(2, 3), "checkpoint-3"),
        *(*steps(3, 4), "push-4", "evaluate-4", "checkpoint-4"),
        *("export", "close"),
    ]


def test_its_steps_are_in_mlflow_and_on_disk_as_those_of_any_run(
    script: Script, options: Options, machine: Path
) -> None:
    summary = call(options())
    history = read_history(run_dir(machine, summary["run_id"]) / "history.jsonl")
    assert [(record["step"], record["demonstrations/num_completions"]) for record in history] == [(0, 3), (1, 3)]
    assert all({"seconds/demonstrations", "seconds/update", "seconds/step"} <= set(record) for record in history)
    assert query(machine, "select name from experiments where name like 'drgrpo%'") == [("drgrpo-sft",)]
    logged = query(machine, "select step from metrics where key = 'demonstrations/num_completions' order by step")
    assert logged == [(0,), (1,)]
    with get_client(sync_client=True) as client:
        run = client.read_flow_runs(limit=1, sort=FlowRunSort.START_TIME_DESC)[0]
    assert str(run.id) == summary["run_id"] and run.state is not None and run.state.is_completed()


def test_demonstrations_are_tried_again_once_and_an_update_is_not(script: Script, options: Options) -> None:
    script.failures = {"demonstrations-1": 1}
    call(options())
    assert Counter(script.calls)["demonstrations-1"] == 2
    script.failures, script.calls = {"update-1": 1}, []
    with pytest.raises(RuntimeError, match="update-1 fails on purpose"):
        call(options())
    assert Counter(script.calls)["update-1"] == 1 and script.calls[-1] == "close"


@pytest.mark.usefixtures("same_run")
@pytest.mark.parametrize(("stage", "every"), [("update-2", 0), ("push-4", 2), ("demonstrations-3", 2), ("export", 2)])
def test_a_run_that_died_continues_to_the_same_policy(
    script: Script, options: Options, machine: Path, stage: str, every: int
) -> None:
    chosen = options(total_steps=4, evaluation__every_steps=2, checkpoint__every_steps=every)
    script.failures = {stage: 2}
    with pytest.raises(RuntimeError, match="on purpose"):
        call(chosen)
    tables = {path: find_table(path) for path in sorted((run_dir(machine) / "steps").glob("*/advantage.parquet"))}
    written = {path: path.stat().st_mtime_ns for path in tables}
    script.failures, before = {}, list(script.calls)
    script.calls.clear()
    summary = call(chosen)

    assert script.clusters[-1].policy == uninterrupted_policy(run_dir(machine))
    assert {path: path.stat().st_mtime_ns for path in written} == written  # a table that is there is not made again
    assert {path: find_table(path) for path in tables} == tables
    loaded = [c for c in script.calls if c.startswith("load")]
    assert loaded == ([] if not every else ["load-step-000004" if "checkpoint-4" in before else "load-step-000002"])
    assert [record["step"] for record in read_history(run_dir(machine) / "history.jsonl")] == [0, 1, 2, 3]
    assert summary["before"] and summary["after"]
    assert query(machine, "select status from runs") == [("FINISHED",)]


@pytest.mark.usefixtures("same_run")
def test_a_lost_engine_is_started_again(script: Script, options: Options, machine: Path) -> None:
    script.failures, script.failure = {"update-1": 1}, "is lost"
    call(options(checkpoint__every_steps=1))
    assert script.calls.count("start") == 2 and "load-step-000001" in script.calls
    assert script.clusters[-1].policy == uninterrupted_policy(run_dir(machine))


def test_a_run_forks_at_a_checkpoint(script: Script, options: Options, machine: Path) -> None:
    first = call(options(checkpoint__every_steps=1))
    script.calls.clear()
    fork = call(options(total_steps=3, checkpoint__every_steps=1), resume_from=f"{first['run_id']}@1")
    assert fork["run_id"] != first["run_id"]
    assert [c for c in script.calls if c.startswith(("load", "demonstrations"))] == [
        *("load-step-000001", "demonstrations-1", "demonstrations-2")
    ]


def test_a_rollback_and_a_stop_are_those_of_reinforcement_learning(
    script: Script, options: Options, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = FakeCluster.update

    def exploding(cluster: FakeCluster, table: Any, step: int) -> dict[str, float]:
        return update(cluster, table, step) | {"update/entropy": 0.0 if step >= 2 else 1.0}

    monkeypatch.setattr(FakeCluster, "update", exploding)
    gate = {"health.entropy.action": "rollback", "health.entropy.patience": 2, "health.max_rollbacks": 1}
    chosen = options(total_steps=4, checkpoint__every_steps=1, checkpoint__keep_last=9) | gate
    with pytest.raises(HealthStop, match="max_rollbacks"):
        call(chosen)
    first, second = sorted(path.name for path in (machine / ".drgrpo" / "runs").iterdir())
    assert second == f"{first}-rollback-1"
    script.calls.clear()
    with pytest.raises(HealthStop, match="max_rollbacks"):
        call(chosen, resume_from=first)
    assert script.calls == ["start", "load-step-000004", "close"]


def test_a_configuration_of_reinforcement_learning_is_refused_with_all_its_mistakes(
    script: Script, options: Options, machine: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        sft(TrainConfig(), options(loss__kl_coef=0.1, model__path="/no/model"))
    assert {mistake.field for mistake in caught.value.mistakes} == {
        *("rollout.group_size", "adv_norm.mean_level", "trainer.completions_per_update", "loss.kl_coef", "model.path")
    }
    assert script.calls == [] and not (machine / ".drgrpo" / "runs").exists()


@pytest.mark.engine
def test_two_real_steps_learn_and_their_export_starts_reinforcement_learning(
    options: Options, machine: Path, tmp_path: Path, tiny_model: Path
) -> None:
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    for split in ("train", "test"):
        rows = [{"question": f"{split}: {i} + 1", "answer": str(i + 1), "worked": f"so #### {i + 1}"} for i in range(8)]
        (pairs / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = options(data__train=str(pairs), data__eval=str(pairs), data__completion_field="worked", optimizer__lr=1e-2)
    summary = call(chosen | {"trainer.num_ranks": 2, "total_steps": 3, "checkpoint.every_steps": 2})

    directory = run_dir(machine, summary["run_id"])
    history = read_history(directory / "history.jsonl")
    nll = [record["update/nll"] for record in history]
    assert len(nll) == 3 and nll[2] < nll[1] < nll[0]
    logged = query(machine, "select value from metrics where key = 'update/nll' order by step")
    assert [value for (value,) in logged] == pytest.approx(nll)
    table = find_table(directory / "steps" / "000000" / "advantage.parquet")
    assert table is not None
    for row in read_table(table).to_pylist():
        assert row["completion"] == f"so #### {row['answer']}" and row["completion_ids"][-1] == 2
    assert {"evaluation/greedy", "evaluation/avg_at_k"} <= set(summary["after"])
    assert history[-1]["sync/mean_abs_logprob_diff"] < 1e-4 and "sync/mean_abs_logprob_diff" not in history[0]

    trained, start = (weights(path) for path in (directory / "policy", tiny_model))
    assert trained.keys() == start.keys()
    assert all(not np.array_equal(trained[name], start[name]) for name in start)
    following = options(model__path=str(directory / "policy"))
    assert checked_config(TrainConfig(), following, load_settings()).model.path == str(directory / "policy")


def weights(directory: Path) -> dict[str, Any]:
    """All weights of a model directory."""
    return {name: tensor for file in directory.glob("model*.safetensors") for name, tensor in load_file(file).items()}
