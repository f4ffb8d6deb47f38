"""Ways back into a run: lost engines, `resume_from`, forks. The engines are fake."""

import errno
import os
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from drgrpo.checkpoints import best_checkpoint, checkpoint_path, find_checkpoints
from drgrpo.cluster.cluster import EngineLost
from drgrpo.config import TrainConfig
from drgrpo.config.errors import ConfigError
from drgrpo.config.output_lock import hold_output_directory
from drgrpo.report import read_history, write_history
from drgrpo.start import checked_run
from flows.recovery import Restarts
from flows.train import train
from tests.flows.fake_cluster import FakeCluster, Script
from tests.flows.test_train import query, uninterrupted_policy

pytestmark = pytest.mark.usefixtures("prefect_server")

Options = Callable[..., dict[str, Any]]


@pytest.fixture
def script(script: Script) -> Script:
    """The fake engines' script; a failure is the loss of an engine."""
    script.failure = "is lost"
    return script


def call(overrides: dict[str, Any], resume_from: str = "") -> dict[str, Any]:
    summary: dict[str, Any] = train(TrainConfig(), overrides, resume_from)
    return summary


def runs(machine: Path) -> list[str]:
    return sorted(path.name for path in (machine / ".drgrpo" / "runs").iterdir())


def run_dir(machine: Path, run_id: str) -> Path:
    return machine / ".drgrpo" / "runs" / run_id


def committed(machine: Path, run_id: str) -> list[float]:
    return [record["step"] for record in read_history(run_dir(machine, run_id) / "history.jsonl")]


@pytest.mark.parametrize("stage", ["rollout-1", "reward-1", "update-1", "push-2", "checkpoint-2", "evaluate-2"])
def test_a_lost_engine_is_started_again_and_the_run_ends_with_the_same_policy(
    script: Script, options: Options, machine: Path, stage: str
) -> None:
    overrides = options(total_steps=3, evaluation__every_steps=2, checkpoint__every_steps=2)
    script.failures = {stage: 2}  # a task that may be tried again is
    summary = call(overrides)
    starts = 3 if stage.startswith(("update", "push", "checkpoint")) else 2
    assert Counter(script.calls)["start"] == Counter(script.calls)["close"] == starts
    policy = uninterrupted_policy(run_dir(machine, summary["run_id"]))
    assert script.clusters[-1].policy == policy
    assert committed(machine, summary["run_id"]) == [0, 1, 2]
    points = query(machine, "select key, step, count(*) from metrics where key not like 'system/%' group by 1, 2")
    assert {(key, step) for key, step, count in points if count > 1} == set()
    assert query(machine, "select status from runs") == [("FINISHED",)]


def test_engines_that_die_again_and_again_without_a_finished_step_end_the_run(
    script: Script, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRGRPO_MAX_RESTARTS", "2")
    script.failures = {"update-1": 99}
    with pytest.raises(EngineLost, match="update-1 is lost"):
        call(options(total_steps=3))
    assert Counter(script.calls)["update-1"] == 3


def test_a_finished_step_between_two_losses_gives_the_run_its_restarts_again(
    script: Script, options: Options, monkeypatch: pytest.MonkeyPatch, machine: Path
) -> None:
    monkeypatch.setenv("DRGRPO_MAX_RESTARTS", "1")
    script.failures = {f"push-{step}": 1 for step in (1, 2, 3)}
    summary = call(options(total_steps=3, checkpoint__every_steps=1))
    assert Counter(script.calls)["start"] == 4 and committed(machine, summary["run_id"]) == [0, 1, 2]


def died(script: Script, overrides: dict[str, Any], machine: Path, at: str) -> str:
    """A run that died at a call for another reason than a lost engine; returns its id."""
    script.failure, script.failures = "fails on purpose", {at: 2}
    with pytest.raises(RuntimeError, match="on purpose"):
        call(overrides)
    script.calls.clear()
    script.failures = {}
    return runs(machine)[-1]


def test_a_new_flow_run_goes_on_with_a_run_by_its_id(script: Script, options: Options, machine: Path) -> None:
    overrides = options(total_steps=3, checkpoint__every_steps=1)
    run_id = died(script, overrides, machine, "update-2")
    summary = call(overrides, resume_from=run_id)
    assert summary["run_id"] == run_id and runs(machine) == [run_id]
    assert [c for c in script.calls if c.startswith(("load", "rollout"))] == ["load-step-000002"]
    assert committed(machine, run_id) == [0, 1, 2]
    assert query(machine, "select count(*) from runs") == [(1,)]
    assert script.clusters[-1].policy == uninterrupted_policy(run_dir(machine, run_id))


def test_what_fits_a_run_to_its_machine_may_change_and_what_changes_its_numbers_may_not(
    script: Script, options: Options, machine: Path
) -> None:
    overrides = options(total_steps=3, checkpoint__every_steps=1)
    run_id = died(script, overrides, machine, "update-2")
    with pytest.raises(ConfigError) as caught:
        call(options(total_steps=3, optimizer__lr=5e-6, rollout__group_size=8), resume_from=run_id)
    assert {m.field for m in caught.value.mistakes} == {"optimizer.lr", "rollout.group_size"}
    assert "<run id>@<step>" in str(caught.value) and script.calls == []
    fitted = options(total_steps=4, trainer__num_ranks=2, trainer__tokens_per_microbatch=2048, checkpoint__keep_last=1)
    assert call(fitted, resume_from=run_id)["run_id"] == run_id
    assert committed(machine, run_id) == [0, 1, 2, 3]


def test_a_fork_starts_at_a_checkpoint_with_other_overrides_as_a_child_in_mlflow(
    script: Script, options: Options, machine: Path
) -> None:
    overrides = options(total_steps=3, checkpoint__every_steps=1, checkpoint__keep_last=9)
    parent = call(overrides)
    policy_after_2 = script.clusters[-1].policy
    script.calls.clear()
    fork = call(overrides | {"optimizer.lr": 1e-5, "total_steps": 4}, resume_from=f"{parent['run_id']}@2")
    assert fork["run_id"] != parent["run_id"]
    assert [c for c in script.calls if c.startswith(("load", "rollout"))] == [
        "load-step-000002",
        "rollout-2",
        "rollout-3",
    ]
    assert committed(machine, fork["run_id"]) == [2, 3]
    evaluated = read_history(run_dir(machine, fork["run_id"]) / "evaluations.jsonl")
    assert [record["step"] for record in evaluated] == [2, 4]
    tags = dict(query(machine, f"select key, value from tags where run_uuid = '{fork['mlflow_run_id']}'"))
    assert tags["mlflow.parentRunId"] == parent["mlflow_run_id"]
    assert tags["drgrpo.forked_from"] == f"{parent['run_id']}@2"
    assert script.clusters[-1].policy != policy_after_2
    # The parent is as it was.
    assert committed(machine, parent["run_id"]) == [0, 1, 2]
    assert len(find_checkpoints(run_dir(machine, parent["run_id"]) / "checkpoints")) == 3


@pytest.mark.parametrize(
    ("resume_from", "told"),
    [
        ("nobody", "there is no run"),
        ("../../etc", "resume_from"),
        ("{run}@two", "not of the form"),
        ("{run}@7", "there are: 1, 2"),
    ],
)
def test_a_wrong_origin_is_refused_before_anything_starts(
    script: Script, options: Options, machine: Path, resume_from: str, told: str
) -> None:
    overrides = options(total_steps=2, checkpoint__every_steps=1)
    run_id = call(overrides)["run_id"]
    script.calls.clear()
    with pytest.raises(ConfigError, match=told):
        call(overrides, resume_from=resume_from.format(run=run_id))
    assert script.calls == [] and runs(machine) == [run_id]


def test_a_corrupt_checkpoint_is_skipped_for_the_one_before_it(
    script: Script, options: Options, machine: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = options(total_steps=4, checkpoint__every_steps=1)
    run_id = died(script, overrides, machine, "update-3")
    weights = checkpoint_path(run_dir(machine, run_id) / "checkpoints", 3) / "weights-00001.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    call(overrides, resume_from=run_id)
    assert [c for c in script.calls if c.startswith("load")] == ["load-step-000002"]
    assert "weights-00001.safetensors is corrupt" in caplog.text
    assert script.clusters[-1].policy == uninterrupted_policy(run_dir(machine, run_id))


@pytest.mark.parametrize(("every", "saved"), [(1, [1, 2, 3, 4, 5]), (4, [2, 4, 5])])
def test_the_best_checkpoint_by_evaluation_is_saved_and_stays_besides_the_last(
    script: Script,
    options: Options,
    machine: Path,
    monkeypatch: pytest.MonkeyPatch,
    every: int,
    saved: list[int],
) -> None:
    accuracy = {0: 0, 1: 0, 2: 3, 3: 1, 4: 2, 5: 2}  # right answers out of every three problems, by step
    evaluate = FakeCluster.evaluate
    present = {"step": 0}

    def noting(cluster: FakeCluster, step: int, policy_version: int) -> Any:
        present["step"] = step
        return evaluate(cluster, step, policy_version)

    def graded(count: int) -> dict[str, list[Any]]:
        right = [row % 3 < accuracy[present["step"]] for row in range(count)]
        rewards = [float(r) for r in right]
        return {"reward": rewards, "reward_gsm8k": rewards, "correct": right, "grader_status": ["ok"] * count}

    monkeypatch.setattr(FakeCluster, "evaluate", noting)
    monkeypatch.setattr("tests.flows.fake_cluster._graded", graded)
    summary = call(
        options(total_steps=5, evaluation__every_steps=1, checkpoint__every_steps=every, checkpoint__keep_last=1)
    )
    assert [c for c in script.calls if c.startswith("checkpoint")] == [f"checkpoint-{step}" for step in saved]
    root = run_dir(machine, summary["run_id"]) / "checkpoints"
    assert [path.name for path in find_checkpoints(root)] == ["step-000005", "step-000002"]
    best = best_checkpoint(root)
    assert best is not None and (best[0].name, best[2]) == ("step-000002", 1.0)


def test_a_process_that_dies_again_and_again_without_a_finished_step_is_started_no_more(tmp_path: Path) -> None:
    for _ in range(3):
        Restarts(2, tmp_path).__enter__()  # killed: never left
    with pytest.raises(EngineLost, match="died 3 times in a row without finishing a step"):
        Restarts(2, tmp_path)
    Restarts(2, tmp_path)  # as a person's Retry does


def test_a_process_that_finished_a_step_or_ended_in_order_counts_afresh(tmp_path: Path) -> None:
    for step in range(4):
        Restarts(1, tmp_path).__enter__()
        write_history(tmp_path / "history.jsonl", {"step": step})
    for _ in range(4):
        with pytest.raises(ValueError, match="orderly"), Restarts(1, tmp_path):
            raise ValueError("an orderly end")


def test_a_death_that_left_no_readable_count_counts_as_none(tmp_path: Path) -> None:
    for content in ("", "{", "[]", "{}"):
        (tmp_path / "restarts.json").write_text(content)
        with Restarts(0, tmp_path):
            pass


def test_a_disk_that_fills_up_does_not_hide_the_runs_own_error_nor_count_as_a_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk, pytest.raises(ValueError, match="its own"), Restarts(0, tmp_path):
        disk.setattr(os, "fsync", full)
        disk.setattr(Path, "write_text", full)
        raise ValueError("its own")
    Restarts(0, tmp_path)


def is_held(machine: Path, run_id: str) -> bool:
    """Whether another process would be refused the run's directory."""
    try:
        with hold_output_directory(run_dir(machine, run_id)):
            return False
    except ConfigError:
        return True


@pytest.mark.parametrize("is_resumed", [False, True], ids=["own", "resumed"])
def test_a_flow_run_that_prefect_started_twice_waits_for_itself(
    script: Script, options: Options, machine: Path, monkeypatch: pytest.MonkeyPatch, is_resumed: bool
) -> None:
    resume_from = call(options(total_steps=1))["run_id"] if is_resumed else ""
    twin, waits, done = ExitStack(), [], len(script.calls)

    def check(*args: Any, own_id: str) -> Any:
        twin.enter_context(hold_output_directory(run_dir(machine, resume_from or own_id), own_id))
        return checked_run(*args, own_id=own_id)

    def leave(seconds: float) -> None:
        waits.append(script.calls[done:])
        twin.close()

    monkeypatch.setattr("flows.train.checked_run", check)
    monkeypatch.setattr("drgrpo.config.output_lock.time", SimpleNamespace(sleep=leave))
    summary = call(options(total_steps=2), resume_from)
    assert waits == [[]] and committed(machine, summary["run_id"]) == [0, 1]


def test_the_directory_is_held_from_the_first_start_of_the_engines_to_the_end(
    script: Script, options: Options, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[bool] = []

    def asleep(seconds: float) -> None:
        held.append(is_held(machine, runs(machine)[0]))

    monkeypatch.setattr("flows.recovery.time", SimpleNamespace(sleep=asleep))
    script.failures = {"update-0": 1, "update-1": 1}
    summary = call(options(total_steps=2))
    assert held == [True, True] and not is_held(machine, summary["run_id"])
