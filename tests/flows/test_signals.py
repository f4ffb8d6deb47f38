"""What a signal does to a run: with notice, without it, and as Prefect's Cancel. The engines are fake."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.exceptions import TerminationSignal

from drgrpo.checkpoints import find_checkpoints
from drgrpo.cluster.cluster import EngineLost
from tests.flows.fake_cluster import FakeCluster, Script
from tests.flows.test_recovery import call, run_dir, runs
from tests.flows.test_train import query, uninterrupted_policy

pytestmark = pytest.mark.usefixtures("prefect_server")

Options = Callable[..., dict[str, Any]]


@contextmanager
def terminated() -> Iterator[None]:
    """What is run within ends with Prefect's exception for a SIGTERM."""

    def terminate(*_: object) -> None:
        raise TerminationSignal(signal=signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        with pytest.raises(TerminationSignal):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("stage", "saved"), [("rollout-2", 2), ("update-2", 3)])
def test_a_signal_with_notice_saves_a_checkpoint_first(
    script: Script,
    options: Options,
    machine: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    saved: int,
) -> None:
    monkeypatch.setenv("DRGRPO_PREEMPTION_NOTICE_S", "60")
    note, to_come = Script.note, [stage]

    def signalled(script: Script, name: str) -> None:
        note(script, name)
        if name in to_come:
            to_come.clear()
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Script, "note", signalled)
    overrides = options(total_steps=4)
    with terminated():
        call(overrides)
    (run_id,) = runs(machine)
    assert f"checkpoint-{saved}" in script.calls and "evaluate-4" not in script.calls
    assert [path.name for path in find_checkpoints(run_dir(machine, run_id) / "checkpoints")] == [f"step-{saved:06d}"]
    assert query(machine, "select status from runs") == [("KILLED",)]
    script.calls.clear()
    call(overrides, resume_from=run_id)
    assert [c for c in script.calls if c.startswith("load")] == [f"load-step-{saved:06d}"]
    assert script.clusters[-1].policy == uninterrupted_policy(run_dir(machine, run_id))


def test_an_engine_that_is_lost_after_a_signal_with_notice_is_not_started_again(
    script: Script, options: Options, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRGRPO_PREEMPTION_NOTICE_S", "60")
    update = FakeCluster.update

    def signalled(cluster: FakeCluster, table: Any, step: int) -> dict[str, float]:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            raise EngineLost("the scheduler has told every process")
        return update(cluster, table, step)

    monkeypatch.setattr(FakeCluster, "update", signalled)
    with terminated():
        call(options(total_steps=4))
    assert script.calls.count("start") == 1
    (run_id,) = runs(machine)
    monkeypatch.setattr(FakeCluster, "update", update)
    call(options(total_steps=4), resume_from=run_id)
    assert script.clusters[-1].policy == uninterrupted_policy(run_dir(machine, run_id))


class Runner:
    """Prefect's runner as a flow's process knows it: it announces a Cancel, waits for the answer, and sends SIGTERM."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.answer = b""
        monkeypatch.setenv("PREFECT__CONTROL_PORT", str(self._listener.getsockname()[1]))
        monkeypatch.setenv("PREFECT__CONTROL_TOKEN", "token")

    def cancel(self) -> None:
        with self._listener, self._listener.accept()[0] as connection:
            assert connection.recv(100) == b"token\n"
            connection.sendall(b"c")
            connection.settimeout(5)
            self.answer = connection.recv(1)
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("notice_s", ["0", "120"])
def test_a_cancel_ends_the_run_at_once_whatever_the_notice_and_prefect_calls_it_cancelled(
    script: Script, options: Options, machine: Path, monkeypatch: pytest.MonkeyPatch, notice_s: str
) -> None:
    monkeypatch.setenv("DRGRPO_PREEMPTION_NOTICE_S", notice_s)
    runner, note = Runner(monkeypatch), Script.note

    def cancelled(script: Script, name: str) -> None:
        note(script, name)
        if name == "update-2":
            runner.cancel()

    monkeypatch.setattr(Script, "note", cancelled)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(TerminationSignal):
            call(options(total_steps=4))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert runner.answer == b"a"  # without it Prefect would call the run crashed, and start it again
    assert script.calls[-2:] == ["update-2", "close"]
    (run_id,) = runs(machine)
    assert find_checkpoints(run_dir(machine, run_id) / "checkpoints") == []
    assert query(machine, "select status from runs") == [("KILLED",)]
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(UUID(run_id)).state
    assert state is not None and state.name == "Cancelled"


def test_a_signal_without_notice_stops_at_once(
    script: Script, options: Options, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = FakeCluster.update

    def interrupted(cluster: FakeCluster, table: Any, step: int) -> dict[str, float]:
        if step == 1:
            raise KeyboardInterrupt
        return update(cluster, table, step)

    monkeypatch.setattr(FakeCluster, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        call(options(total_steps=4))
    assert script.calls[-1] == "close" and not [c for c in script.calls if c.startswith("checkpoint")]
    assert query(machine, "select status from runs") == [("KILLED",)]
