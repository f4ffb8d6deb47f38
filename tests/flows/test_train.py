"""Order, recovery and refusals of the training flow: real Prefect and MLflow, a cluster without engines."""

import hashlib
import json
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.client.schemas.sorting import FlowRunSort

from drgrpo.config import TrainConfig
from drgrpo.config.errors import ConfigError
from drgrpo.config.output_lock import hold_output_directory
from drgrpo.origin import Origin
from drgrpo.report import read_history
from drgrpo.run import Run
from drgrpo.tables import find_table, read_table
from flows.identity import Identity, identity
from flows.train import train
from tests.flows.fake_cluster import FakeCluster, Script

pytestmark = pytest.mark.usefixtures("prefect_server")

Options = Callable[..., dict[str, Any]]
RUN_ID = "11111111-2222-4333-8444-555555555555"
STEP = ("rollout", "reward", "advantage", "update", "push")


@pytest.fixture
def same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call of the flow is the same run, as a retried flow run is."""

    def fixed(origin: Origin | None = None) -> Identity:
        return Identity(**{**identity(), "run_id": RUN_ID})

    monkeypatch.setattr("flows.recovery.identity", fixed)


def run_dir(machine: Path, run_id: str = RUN_ID) -> Path:
    return machine / ".drgrpo" / "runs" / run_id


def call(overrides: dict[str, Any]) -> dict[str, Any]:
    summary: dict[str, Any] = train(TrainConfig(), overrides)
    return summary


def steps(first: int, last: int) -> list[str]:
    """Calls of whole steps, from `first` up to but not including `last`."""
    return [f"{stage}-{step + (stage == 'push')}" for step in range(first, last) for stage in STEP]


def flow_run(run_id: str) -> tuple[FlowRun, list[TaskRun]]:
    """A flow run and its task runs as the server has them."""
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(run_id)  # type: ignore[arg-type]
        chosen = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
        return run, client.read_task_runs(flow_run_filter=chosen, limit=200)


def last_flow_run() -> FlowRun:
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(limit=1, sort=FlowRunSort.START_TIME_DESC)[0]


def artifacts(run_id: str) -> dict[str, Any]:
    """Newest artifact of each kind of a run, without the run's id in the key."""
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(like_=f"%{run_id}")))
    ordered = sorted(found, key=lambda artifact: str(artifact.created))
    return {str(artifact.key).removesuffix(f"-{run_id}"): artifact for artifact in ordered}


def query(machine: Path, sql: str) -> list[tuple[Any, ...]]:
    """Rows of the MLflow store."""
    with sqlite3.connect(machine / ".drgrpo" / "mlflow.db") as connection:
        return connection.execute(sql).fetchall()


def test_the_stages_run_in_their_order_and_engines_close_at_the_end(script: Script, options: Options) -> None:
    call(options())
    assert script.calls == ["start", "push-0", "evaluate-0", *steps(0, 2), "evaluate-2", "export", "close"]


def test_evaluation_and_checkpoints_keep_their_cadence(script: Script, options: Options) -> None:
    call(options(total_steps=5, evaluation__every_steps=2, checkpoint__every_steps=2, checkpoint__export=False))
    counts = [c for c in script.calls if c.startswith(("evaluate", "checkpoint"))]
    assert counts == [
        "evaluate-0",
        *("evaluate-2", "checkpoint-2", "evaluate-4", "checkpoint-4"),
        *("evaluate-5", "checkpoint-5"),
    ]
    assert "export" not in script.calls


def test_tasks_are_named_and_tagged_by_their_stage(script: Script, options: Options) -> None:
    run_id = call(options(total_steps=1))["run_id"]
    expected = {"restore", "push-0", "evaluate-0", "push-1", "evaluate-1", "export-1"}
    expected |= {f"{stage}-0" for stage in STEP if stage != "push"}
    for _ in range(300):  # the server records task runs in batches
        run, tasks = flow_run(run_id)
        if len(tasks) == len(expected) and all(t.state and t.state.is_completed() for t in tasks):
            break
        time.sleep(0.2)
    assert {task.name for task in tasks} == expected
    assert all(len(task.tags) == 1 for task in tasks)
    tags = {task.name.split("-")[0]: task.tags[0] for task in tasks}
    assert tags["rollout"] == "rollout" and tags["push"] == "push" and tags["export"] == "checkpoint"
    assert run.state is not None and run.state.is_completed()


def test_prefect_shows_progress_tables_and_the_way_to_mlflow(script: Script, options: Options) -> None:
    summary = call(options())
    shown = artifacts(summary["run_id"])
    assert set(shown) == {"mlflow", "progress", "steps", "samples", "summary"}
    assert summary["mlflow_run_id"] in shown["mlflow"].data and shown["mlflow"].type == "markdown"
    assert shown["progress"].data == 100.0 and shown["progress"].type == "progress"
    assert [row["step"] for row in json.loads(shown["steps"].data)] == ["0", "1"]
    samples = json.loads(shown["samples"].data)
    assert {row["finish"] for row in samples} == {"`stop`", "`length`"}
    assert "avg@k changed by" in shown["summary"].data


def test_mlflow_links_back_and_has_every_step_once(script: Script, options: Options, machine: Path) -> None:
    summary = call(options())
    run_id = summary["mlflow_run_id"]
    tags = dict(query(machine, f"select key, value from tags where run_uuid = '{run_id}'"))
    assert tags["prefect.flow_run_id"] == summary["run_id"] == tags["drgrpo.run_id"]
    points = query(machine, f"select key, step from metrics where run_uuid = '{run_id}' and key = 'reward/mean'")
    assert sorted(points) == [("reward/mean", 0), ("reward/mean", 1)]
    params = dict(query(machine, f"select key, value from params where run_uuid = '{run_id}'"))
    assert (params["total_steps"], params["rollout.group_size"]) == ("2", "4")
    assert query(machine, f"select status from runs where run_uuid = '{run_id}'") == [("FINISHED",)]
    assert query(machine, "select name from experiments where name like 'drgrpo%'") == [("drgrpo",)]


def test_stages_that_only_write_a_table_are_tried_again_once(script: Script, options: Options) -> None:
    retried = ("rollout-1", "reward-1", "advantage-1", "evaluate-2")
    script.failures = dict.fromkeys(retried, 1)
    call(options(checkpoint__export=False))
    assert [Counter(script.calls)[stage] for stage in retried] == [2, 2, 2, 2]
    script.failures, script.calls = {"rollout-0": 2}, []
    with pytest.raises(RuntimeError, match="rollout-0 fails on purpose"):
        call(options(checkpoint__export=False))
    assert Counter(script.calls)["rollout-0"] == 2


@pytest.mark.parametrize("stage", ["update-0", "push-1"])
def test_a_stage_that_changes_the_engines_is_not(script: Script, options: Options, machine: Path, stage: str) -> None:
    script.failures = {stage: 1}
    with pytest.raises(RuntimeError, match=f"{stage} fails on purpose"):
        call(options(checkpoint__every_steps=1))
    assert Counter(script.calls)[stage] == 1
    assert script.calls[-1] == "close"
    failed = last_flow_run()
    assert failed.state is not None and failed.state.is_failed()
    assert "fails on purpose" in str(failed.state.message)
    (status,) = query(machine, f"select status from runs r join tags t using (run_uuid) where t.value = '{failed.id}'")[
        :1
    ]
    assert status == ("FAILED",)


@pytest.mark.usefixtures("same_run")
@pytest.mark.parametrize(("stage", "every"), [("update-2", 0), ("push-3", 2), ("rollout-3", 2), ("export", 2)])
def test_a_run_that_died_continues_to_the_same_policy(
    script: Script, options: Options, machine: Path, stage: str, every: int
) -> None:
    overrides = options(total_steps=4, evaluation__every_steps=2, checkpoint__every_steps=every)
    script.failures = {stage: 2}
    with pytest.raises(RuntimeError, match="on purpose"):
        call(overrides)
    script.failures, before = {}, list(script.calls)
    sampled = {step: find_table(run_dir(machine) / "steps" / f"{step:06d}" / "rollout.parquet") for step in range(4)}
    script.calls.clear()
    summary = call(overrides)

    assert script.clusters[-1].policy == uninterrupted_policy(script.clusters[-1].run_dir)
    again = [c for c in script.calls if c.startswith(("rollout", "evaluate"))]
    assert not [c for c in again if c in before and c != stage], "generated what lay on disk"
    for step, table in sampled.items():
        if table is not None:
            assert find_table(run_dir(machine) / "steps" / f"{step:06d}" / "rollout.parquet") == table
    if every:
        done = 2 if "checkpoint-4" not in before else 4
        loaded = [c for c in script.calls if c.startswith("load")]
        assert loaded == ([f"load-step-{done:06d}"] if f"checkpoint-{done}" in before else [])
    assert [record["step"] for record in read_history(run_dir(machine) / "history.jsonl")] == [0, 1, 2, 3]
    evaluations = [record["step"] for record in read_history(run_dir(machine) / "evaluations.jsonl")]
    assert evaluations == [0, 2, 4]
    points = query(machine, "select key, step, count(*) from metrics where key not like 'system/%' group by 1, 2")
    run_ids = query(machine, "select distinct run_uuid from metrics")
    assert run_ids == [(summary["mlflow_run_id"],)]
    assert {(key, step): n for key, step, n in points if n > 1} == {}
    assert query(machine, "select status from runs") == [("FINISHED",)]


@pytest.mark.usefixtures("same_run")
def test_a_run_that_died_between_checkpoint_and_commit_has_no_hole(
    script: Script, options: Options, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = options(total_steps=3, checkpoint__every_steps=1)
    with monkeypatch.context() as broken:
        commit = Run.commit

        def fail(run: Run, step: int) -> dict[str, float]:
            if step == 1:
                raise RuntimeError("killed")
            return commit(run, step)

        broken.setattr(Run, "commit", fail)
        with pytest.raises(RuntimeError, match="killed"):
            call(overrides)
    assert "checkpoint-2" in script.calls
    script.calls.clear()
    call(overrides)
    assert [c for c in script.calls if c.startswith(("load", "rollout"))] == ["load-step-000001", "rollout-2"]
    assert [record["step"] for record in read_history(run_dir(machine) / "history.jsonl")] == [0, 1, 2]


def uninterrupted_policy(directory: Path) -> str:
    """What the updates of the tables on disk lead to."""
    policy = "initial"
    for step in sorted((directory / "steps").iterdir()):
        table = find_table(step / "advantage.parquet")
        assert table is not None
        policy = hashlib.sha256(f"{policy}/{table.sha256}".encode()).hexdigest()
    return policy


@pytest.mark.usefixtures("same_run")
def test_a_finished_run_that_is_called_again_finishes_again(script: Script, options: Options, machine: Path) -> None:
    overrides = options(checkpoint__every_steps=1)
    first = call(overrides)
    script.calls.clear()
    second = call(overrides)
    assert [c for c in script.calls if c.startswith(("rollout", "update", "evaluate"))] == []
    assert {**second, "mlflow_run_id": None} == {**first, "mlflow_run_id": None}
    assert second["mlflow_run_id"] == first["mlflow_run_id"]


@pytest.mark.usefixtures("same_run")
def test_a_damaged_table_is_made_again(script: Script, options: Options, machine: Path) -> None:
    script.failures = {"update-1": 1}
    with pytest.raises(RuntimeError):
        call(options())
    table = run_dir(machine) / "steps" / "000001" / "rollout.parquet"
    table.write_bytes(table.read_bytes()[:-1])
    script.calls.clear()
    call(options())
    assert [c for c in script.calls if c.startswith("rollout")] == ["rollout-1"]


@pytest.mark.usefixtures("same_run")
def test_a_rollout_that_comes_out_different_is_graded_again(
    script: Script, options: Options, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.failures = {"update-1": 1}
    with pytest.raises(RuntimeError):
        call(options())
    step, rows = run_dir(machine) / "steps" / "000001", FakeCluster._rows
    (step / "rollout.parquet").unlink()

    def changed(cluster: FakeCluster, *args: int) -> dict[str, Sequence[Any]]:
        columns = rows(cluster, *args)
        return {**columns, "prompt": ["2 + 2 = "] * len(columns["prompt"])}

    monkeypatch.setattr(FakeCluster, "_rows", changed)
    script.calls.clear()
    call(options())
    assert [c for c in script.calls if c.startswith(("rollout", "reward"))] == ["rollout-1", "reward-1"]
    for stage in ("rollout", "reward", "advantage"):
        table = find_table(step / f"{stage}.parquet")
        assert table is not None and set(read_table(table)["prompt"].to_pylist()) == {"2 + 2 = "}


@pytest.mark.usefixtures("same_run")
def test_another_configuration_is_refused_with_the_difference(script: Script, options: Options, machine: Path) -> None:
    script.failures = {"update-1": 1}
    with pytest.raises(RuntimeError):
        call(options())
    script.calls.clear()
    with pytest.raises(ConfigError) as caught:
        call(options(optimizer__lr=5e-6, seed=3))
    assert {m.field for m in caught.value.mistakes} == {"optimizer.lr", "seed"}
    assert "the run was started with 1e-06" in str(caught.value)
    assert script.calls == []
    call(options())  # unchanged, it goes on


@pytest.mark.usefixtures("same_run")
def test_a_second_run_on_the_same_directory_is_refused(script: Script, options: Options, machine: Path) -> None:
    with hold_output_directory(run_dir(machine)), pytest.raises(ConfigError, match="in use by another run"):
        call(options())
    assert script.calls == []


def test_bad_input_starts_no_engine_writes_no_run_and_fails_the_flow(
    script: Script, options: Options, machine: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        call(options(rollout__group_siz=1, optimizer__lr=-1.0, model__path="/no/model"))
    assert {m.field for m in caught.value.mistakes} == {"rollout.group_siz", "optimizer.lr", "model.path"}
    failed = last_flow_run()
    assert failed.state is not None and failed.state.is_failed()
    assert script.calls == []
    assert not (machine / ".drgrpo" / "runs").exists()


def test_mlflow_out_of_reach_stops_the_flow_before_anything_starts(
    script: Script, options: Options, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRGRPO_MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="MLflow does not answer"):
        call(options())
    assert script.calls == [] and not (machine / ".drgrpo" / "runs").exists()
