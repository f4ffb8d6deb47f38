"""Forks of forks, and what the health gates do to a run: stops and rollbacks. The engines are fake."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drgrpo.checkpoints import CheckpointError, checkpoint_path
from drgrpo.config.errors import ConfigError
from drgrpo.config.output_lock import hold_output_directory
from drgrpo.description import read_description
from drgrpo.health import HealthStop
from drgrpo.tables import find_table
from flows.recovery import Restarts
from tests.flows.fake_cluster import FakeCluster, Script
from tests.flows.test_recovery import call, committed, run_dir, runs
from tests.flows.test_train import query

pytestmark = pytest.mark.usefixtures("prefect_server")

Options = Callable[..., dict[str, Any]]
GATE = {"health.entropy.action": "rollback", "health.entropy.patience": 2}


@pytest.fixture
def explode(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`explode(lr, at)`: from step `at` on every update with more than that learning rate collapses the entropy."""
    update = FakeCluster.update

    def make(lr: float, at: int = 3, and_then: Callable[[FakeCluster, int], None] = lambda cluster, step: None) -> None:
        def exploding(cluster: FakeCluster, table: Any, step: int) -> dict[str, float]:
            and_then(cluster, step)
            bad = step >= at and cluster.config.optimizer.lr > lr
            return update(cluster, table, step) | {"update/entropy": 0.0 if bad else 1.0}

        monkeypatch.setattr(FakeCluster, "update", exploding)

    return make


def watched(options: Options, **changes: Any) -> dict[str, Any]:
    usual = {"total_steps": 6, "checkpoint__every_steps": 1, "checkpoint__keep_last": 9, "optimizer__lr": 1e-3}
    return options(**{**usual, **changes}) | GATE


def corrupt(run: Path, step: int) -> None:
    """Flip a bit of a checkpoint's weights."""
    weights = checkpoint_path(run / "checkpoints", step) / "weights-00001.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def policy_of(*parts: tuple[Path, range]) -> str:
    """What the updates of these steps' tables lead to."""
    policy = "initial"
    for directory, steps in parts:
        for step in steps:
            table = find_table(directory / "steps" / f"{step:06d}" / "advantage.parquet")
            assert table is not None
            policy = hashlib.sha256(f"{policy}/{table.sha256}".encode()).hexdigest()
    return policy


def loaded(script: Script) -> list[str]:
    return [c for c in script.calls if c.startswith("load")]


def test_a_rollback_goes_on_from_before_the_finding_with_half_the_learning_rate(
    script: Script, options: Options, machine: Path, explode: Callable[..., None]
) -> None:
    explode(5e-4)
    overrides = watched(options)
    summary = call(overrides)
    first, second = runs(machine)
    assert second == f"{first}-rollback-1" == summary["run_id"]
    assert committed(machine, first) == [0, 1, 2, 3, 4] and committed(machine, second) == [2, 3, 4, 5]
    description = read_description(run_dir(machine, second))
    assert (
        description is not None and description.forked_from == f"{first}@2"
    )  # the policy after 3 steps shows it at step 3
    assert description.config.optimizer.lr == 5e-4
    parents = query(machine, "select value from tags where key = 'mlflow.parentRunId'")
    assert parents == query(machine, f"select run_uuid from tags where key = 'drgrpo.run_id' and value = '{first}'")
    # Called again, as Retry does, the fork is what goes on.
    script.calls.clear()
    assert call(overrides, resume_from=first)["run_id"] == second
    assert [c for c in script.calls if c.startswith(("rollout", "update"))] == []


def test_a_run_that_was_bad_from_its_first_step_starts_from_the_model_until_its_rollbacks_are_used_up(
    script: Script, options: Options, machine: Path
) -> None:
    # Every group of the fake cluster has a signal, and half of its completions are cut.
    gate = {"health.truncated_share.action": "rollback", "health.truncated_share.limit": 0.1}
    with pytest.raises(HealthStop, match="max_rollbacks = 2 is used up"):
        call(options(total_steps=4, optimizer__lr=1e-3) | gate)
    first, second, third = runs(machine)
    assert (second, third) == (f"{first}-rollback-1", f"{first}-rollback-2") and loaded(script) == []
    for parent, fork, lr in ((first, second, 5e-4), (second, third, 2.5e-4)):
        description = read_description(run_dir(machine, fork))
        assert description is not None and description.forked_from == f"{parent}@0"
        assert description.config.optimizer.lr == lr and committed(machine, fork)[0] == 0


def test_a_rollback_to_where_no_checkpoint_is_stops(
    script: Script, options: Options, explode: Callable[..., None]
) -> None:
    explode(5e-4)
    with pytest.raises(HealthStop, match="no checkpoint of at most 2 iterations"):
        call(watched(options, checkpoint__every_steps=0, checkpoint__every_minutes=1e6))


def test_a_second_rollback_goes_on_from_the_checkpoint_that_the_first_one_adopted(
    script: Script, options: Options, machine: Path, explode: Callable[..., None]
) -> None:
    explode(2.5e-4)
    summary = call(watched(options))
    first, second, third = runs(machine)
    assert summary["run_id"] == third == f"{first}-rollback-2"
    assert loaded(script) == ["load-step-000002", "load-step-000002"]
    assert committed(machine, second) == [2, 3, 4] and committed(machine, third) == [2, 3, 4, 5]
    parts = (run_dir(machine, first), range(2)), (run_dir(machine, third), range(2, 6))
    assert script.clusters[-1].policy == policy_of(*parts)
    description = read_description(run_dir(machine, third))
    assert description is not None and description.forked_from == f"{second}@2"
    assert description.config.optimizer.lr == 2.5e-4


def test_a_fork_of_a_fork_starts_at_the_adopted_step(script: Script, options: Options, machine: Path) -> None:
    overrides = options(total_steps=3, checkpoint__every_steps=1, checkpoint__keep_last=9)
    run_id = call(overrides)["run_id"]
    origin = run_id
    for lr in (1e-5, 1e-4, 1e-3):
        script.calls.clear()
        run_id = call(overrides | {"optimizer.lr": lr}, resume_from=f"{run_id}@2")["run_id"]
        assert loaded(script) == ["load-step-000002"] and committed(machine, run_id) == [2]
    parts = (run_dir(machine, origin), range(2)), (run_dir(machine, run_id), range(2, 3))
    assert script.clusters[-1].policy == policy_of(*parts)


def test_a_fork_whose_checkpoint_is_corrupt_does_not_start_from_the_model(
    script: Script, options: Options, machine: Path
) -> None:
    overrides = options(total_steps=3, checkpoint__every_steps=1, checkpoint__keep_last=9)
    first = call(overrides)["run_id"]
    script.failures = {"update-2": 1}
    with pytest.raises(RuntimeError, match="on purpose"):
        call(overrides | {"optimizer.lr": 1e-5}, resume_from=f"{first}@2")
    (fork,) = set(runs(machine)) - {first}
    corrupt(run_dir(machine, fork), 2)
    script.calls.clear()
    with pytest.raises(CheckpointError, match=r"starts after 2 steps.*weights-00001.safetensors is corrupt"):
        call(overrides | {"optimizer.lr": 1e-5}, resume_from=fork)
    assert script.calls == ["start", "close"]


def test_a_rollback_takes_no_checkpoint_that_is_corrupt(
    script: Script, options: Options, machine: Path, explode: Callable[..., None]
) -> None:
    def damaging(cluster: FakeCluster, step: int) -> None:
        if step == 4 and cluster.config.optimizer.lr == 1e-3:
            corrupt(cluster.run_dir, 2)

    explode(5e-4, and_then=damaging)
    call(watched(options))
    first, second = runs(machine)
    description = read_description(run_dir(machine, second))
    assert description is not None and description.forked_from == f"{first}@1"
    assert loaded(script) == ["load-step-000001"]


def test_deaths_after_a_rollback_count_by_the_steps_of_the_run_that_went_on(
    script: Script,
    options: Options,
    machine: Path,
    explode: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DRGRPO_MAX_RESTARTS", "1")
    monkeypatch.setattr(Restarts, "__exit__", lambda *_: None)  # as a kill leaves it
    to_come = [5, 6, 7]

    def die(cluster: FakeCluster, step: int) -> None:
        if cluster.config.optimizer.lr < 1e-3 and step in to_come:
            to_come.remove(step)
            raise RuntimeError("killed")

    explode(5e-4, at=5, and_then=die)
    overrides, origin = watched(options, total_steps=9), ""
    for _ in range(3):
        with pytest.raises(RuntimeError, match="killed"):
            call(overrides, resume_from=origin)
        origin = runs(machine)[0]
    summary = call(overrides, resume_from=origin)
    assert summary["run_id"] == f"{origin}-rollback-1"
    assert committed(machine, summary["run_id"]) == [4, 5, 6, 7, 8]


def test_what_fits_a_run_to_its_machine_may_change_after_a_rollback(
    script: Script, options: Options, machine: Path, explode: Callable[..., None]
) -> None:
    explode(5e-4)
    overrides = watched(options)
    call(overrides)
    first, second = runs(machine)
    script.calls.clear()
    fitted = overrides | {"total_steps": 8, "checkpoint.keep_last": 5, "health.entropy.limit": 0.5}
    assert call(fitted, resume_from=first)["run_id"] == second
    assert committed(machine, second) == [2, 3, 4, 5, 6, 7]
    description = read_description(run_dir(machine, second))
    assert description is not None
    config = description.config
    assert (config.optimizer.lr, config.total_steps) == (5e-4, 8)
    assert (config.checkpoint.keep_last, config.health.entropy.limit) == (5, 0.5)
    with pytest.raises(ConfigError, match=r"optimizer\.lr"):
        call(fitted | {"optimizer.lr": 2e-3}, resume_from=first)


def test_the_directory_stays_held_while_a_rollback_takes_its_place(
    script: Script, options: Options, machine: Path, explode: Callable[..., None]
) -> None:
    refused: list[str] = []

    def look(cluster: FakeCluster, step: int) -> None:
        for run_id in runs(machine):
            with pytest.raises(ConfigError, match="in use"), hold_output_directory(run_dir(machine, run_id)):
                pass
            refused.append(run_id)

    explode(5e-4, and_then=look)
    call(watched(options))
    first, second = runs(machine)
    assert refused == [first] * 5 + [first, second] * 4


@pytest.mark.parametrize("total_steps", [5, 6])
def test_a_run_that_a_gate_stopped_trains_no_step_more_until_the_gate_is_changed(
    script: Script, options: Options, machine: Path, explode: Callable[..., None], total_steps: int
) -> None:
    explode(0.0)
    overrides = watched(options, total_steps=total_steps) | {"health.entropy.action": "stop"}
    with pytest.raises(HealthStop, match="entropy"):
        call(overrides)
    (run_id,) = runs(machine)
    for _ in range(2):
        script.calls.clear()
        with pytest.raises(HealthStop, match="entropy"):
            call(overrides, resume_from=run_id)
        assert script.calls == ["start", "load-step-000005", "close"]
    call(overrides | {"health.entropy.action": "warn"}, resume_from=run_id)
    assert script.calls[-2:] == ["export", "close"] and committed(machine, run_id) == list(range(total_steps))
