"""What serves a run dies under it: MLflow, Prefect's server, the flow's process, the worker. And a person cancels it.

Everything is real: a server, a worker, MLflow over HTTP, the engines on the tiny model.
"""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from deployments.environment import Environment, read_environment
from deployments.service import answers
from deployments.services import Services
from drgrpo.report import read_history
from drgrpo.settings import Settings, resolved
from tests.faults.disturbed import Ended, check_same, run_once, run_to_the_end
from tests.faults.victims import find, kill, left_behind
from tests.flows.test_deployments import Server, machine

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(1200)]

Options = Callable[..., dict[str, Any]]
DEPLOYMENT = "drgrpo/gsm8k"  # any that has the tag `restart`


class Machine:
    """A machine with a Prefect server, MLflow over HTTP and a worker that nothing guards."""

    def __init__(self, root: Path) -> None:
        self.root = root
        variables = machine(root) | {"DRGRPO_DEVICE": "cpu", "PREFECT_WORKER_QUERY_SECONDS": "1"}
        ui = variables["DRGRPO_MLFLOW_UI_URL"]
        self.environment: Environment = read_environment(variables, state_dir=root / ".drgrpo")
        self.services = Services(self.environment, resolved(Settings(root=root, mlflow_ui_url=ui)))
        self.services.start_server()
        self.services.start_mlflow_ui()
        self.server = Server(self.environment)
        self.server.deploy()
        self.start_worker()

    def start_worker(self) -> None:
        """A worker whose runs keep their tracking in MLflow over HTTP."""
        variables = self.environment.variables
        tracking = {"DRGRPO_MLFLOW_TRACKING_URI": variables["DRGRPO_MLFLOW_UI_URL"]}
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "drgrpo"]
        with (self.root / "worker.log").open("a") as log:
            self.worker = subprocess.Popen(command, env=variables | tracking, stdout=log, stderr=log)

    def start_run(self, overrides: dict[str, Any], **variables: str) -> str:
        """Id of a new flow run, whose process has further environment variables."""
        body = {"parameters": {"overrides": overrides}, "state": {"type": "SCHEDULED"}}
        if variables:
            body["job_variables"] = {"env": variables}
        return str(self.server.create_flow_run(DEPLOYMENT, body))

    def state(self, run_id: str) -> str:
        return str(self.server.ask(f"/flow_runs/{run_id}")[1]["state_type"])

    def has_failed(self, run_id: str) -> bool:
        """Whether the flow run failed; no answer of the server is none."""
        try:
            return self.state(run_id) == "FAILED"
        except (OSError, KeyError):
            return False

    def steps_done(self, run_id: str) -> int:
        return len(read_history(self.root / ".drgrpo" / "runs" / run_id / "history.jsonl"))

    def wait_for_steps(self, run_id: str, count: int) -> None:
        self.wait(lambda: self.steps_done(run_id) >= count or self.has_failed(run_id), f"{count} steps of {run_id}")
        assert self.steps_done(run_id) >= count, self.log()

    def wait_for_state(self, run_id: str, *states: str) -> None:
        self.wait(lambda: self.state(run_id) in states, f"{states} of {run_id}")

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float = 420) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"no {what} after {timeout_s} s: {self.log()}"
            time.sleep(0.2)

    def log(self) -> str:
        return (self.root / "worker.log").read_text()[-6000:]

    def kill_service(self, name: str) -> None:
        """kill -9 of a service and of the guard that would end what it started in order."""
        service = next(service for service in self.services._started if service.name == name)
        guard = psutil.Process(service._process.pid)
        for process in [*guard.children(recursive=True), guard]:
            process.kill()
        service._process.wait()

    def close(self) -> None:
        self.worker.terminate()
        self.worker.wait(60)
        self.services.stop()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("served"))
    yield machine
    machine.close()


@pytest.fixture(scope="module")
def overrides(options: Options) -> dict[str, Any]:
    """Steps of some seconds, so that a blow falls into the run."""
    return options(
        total_steps=8,
        data__prompt_template="{question}",  # the deployment's own is longer than the tiny model's limit
        trainer__gradient_checkpointing=False,
        optimizer__lr=1e-3,
        rollout__max_completion_tokens=16,
        reward__functions={"tests.flows.rewards:slow_parity": 1.0},
        reward__truncated_reward="keep",
        checkpoint__every_steps=3,
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, overrides: dict[str, Any], server_address: None) -> Ended:
    return run_to_the_end(tmp_path_factory.mktemp("undisturbed"), overrides, lambda stage, version: None)


def test_a_run_outlives_mlflow_the_server_its_own_process_and_its_worker(
    served: Machine, overrides: dict[str, Any], undisturbed: Ended
) -> None:
    run_id = served.start_run(overrides)
    served.wait_for_steps(run_id, 1)
    assert kill(served.root, "flow") is not None
    served.wait_for_steps(run_id, 3)  # the automation started it again
    served.worker.kill()
    served.worker.wait()
    served.start_worker()  # the run's output had led to the first; it crashed, and goes on under the second
    served.wait_for_steps(run_id, 5)
    served.kill_service("mlflow-ui")
    served.wait_for_steps(run_id, 6)
    served.kill_service("prefect-server")
    time.sleep(5)
    assert sorted(served.services.revive()) == ["mlflow-ui", "prefect-server"]
    served.wait(lambda: answers(f"{served.environment.api_url}/health"), "answer of the server")
    served.wait_for_state(run_id, "COMPLETED", "FAILED")
    assert served.state(run_id) == "COMPLETED", served.log()
    check_same(Ended(served.root, run_id, 2), undisturbed)
    assert left_behind(served.root) == []


@pytest.mark.parametrize("notice_s", ["0", "120"])
def test_a_cancelled_run_is_gone_within_20_seconds_and_goes_on_when_it_is_retried(
    served: Machine, overrides: dict[str, Any], undisturbed: Ended, notice_s: str
) -> None:
    run_id = served.start_run(overrides, DRGRPO_PREEMPTION_NOTICE_S=notice_s)
    served.wait_for_steps(run_id, 2)
    started = time.monotonic()
    served.server.ask(f"/flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING"}})
    served.wait_for_state(run_id, "CANCELLED", "CRASHED", "FAILED", "COMPLETED")
    assert left_behind(served.root, timeout_s=20) == []
    assert list((served.root / ".drgrpo" / "runs" / run_id / "checkpoints").glob("step-00000[1245]")) == []
    seconds = time.monotonic() - started
    print(f"cancelled after {seconds:.1f} s")
    assert served.state(run_id) == "CANCELLED" and served.steps_done(run_id) < 8
    done = Ended(served.root, run_id, 1)
    assert done.status() == [("KILLED",)]
    assert seconds < 20
    body = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": True}
    served.server.ask(f"/flow_runs/{run_id}/set_state", body)
    served.wait_for_state(run_id, "COMPLETED", "FAILED", "CRASHED")
    assert served.state(run_id) == "COMPLETED", served.log()
    assert done.weights() == undisturbed.weights() and done.samples() == undisturbed.samples()


def test_two_runs_that_want_the_same_machine_queue(served: Machine, overrides: dict[str, Any]) -> None:
    first = served.start_run({**overrides, "total_steps": 4})
    second = served.start_run({**overrides, "total_steps": 1})
    served.wait_for_steps(first, 1)
    while served.state(first) == "RUNNING":
        assert served.state(second) in ("SCHEDULED", "PENDING") and served.steps_done(second) == 0
        time.sleep(0.5)
    served.wait_for_state(second, "COMPLETED", "FAILED", "CRASHED")
    assert [served.state(run) for run in (first, second)] == ["COMPLETED", "COMPLETED"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("server_address")
def test_ctrl_c_and_sigterm_end_a_run_within_20_seconds_and_it_goes_on_when_it_is_resumed(
    tmp_path: Path, overrides: dict[str, Any], undisturbed: Ended, number: signal.Signals
) -> None:
    at: list[float] = []

    def blow(stage: str, version: int) -> None:
        if (stage, version) == ("reward", 1):
            flow = find(tmp_path, "flow")
            assert flow is not None
            threading.Timer(1.0, end, [flow]).start()  # grading takes more than two seconds

    def end(flow: psutil.Process) -> None:
        flow.send_signal(number)
        at.append(time.monotonic())

    ended = run_once(tmp_path, overrides, blow)
    assert left_behind(tmp_path, timeout_s=20) == []
    assert time.monotonic() - at[0] < 20
    assert ended.status == -number and ended.stages[-1] == ("reward", 1), ended.output[-6000:]
    run = Ended(tmp_path, ended.run_id, 1)
    assert run.status() == [("KILLED",)] and run.steps() == [0]
    check_same(run_to_the_end(tmp_path, overrides, lambda stage, version: None, ended.run_id), undisturbed)
