"""Finding and killing the processes of a run by what they are."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

ENGINES = ("trainer-0", "trainer-1", "rollout-0", "host-0")
VICTIMS = (*ENGINES, "grader", "raylet", "gcs_server", "flow")

_SERVICES = ("deployments.guard", "prefect server", "prefect worker", "prefect.server", "mlflow")


def processes(root: Path) -> Iterator[tuple[str, psutil.Process]]:
    """(kind, process) of everything that belongs to the machine whose state lies under `root`."""
    for process in psutil.process_iter():
        try:
            environment, command = process.environ(), process.cmdline()
        except psutil.Error:
            continue
        if environment.get("DRGRPO_ROOT") == str(root) and process.pid != os.getpid() and command:
            yield _kind(environment, command), process


def _kind(environment: dict[str, str], command: list[str]) -> str:
    first, line = Path(command[0]).name, " ".join(command)
    if first in ("raylet", "gcs_server"):
        return first
    if "tests.faults.flow_process" in line or "prefect.engine" in line or "prefect.flow_engine" in line:
        return "flow"
    if "drgrpo.rewards" in line:
        return "grader"
    if any(word in line for word in _SERVICES):
        return "service"
    return environment.get("DRGRPO_ENGINE", "other") if "ray::" in line else "other"


def kill(root: Path, kind: str) -> int | None:
    """kill -9 of the first process of that kind; its id, or None when there is none."""
    for found, process in processes(root):
        if found == kind:
            process.send_signal(signal.SIGKILL)
            return process.pid
    return None


def left_behind(root: Path, timeout_s: float = 30.0) -> list[str]:
    """What still runs of the machine after at most `timeout_s` seconds, services aside."""
    deadline = time.monotonic() + timeout_s
    while left := [f"{kind} {process.pid}" for kind, process in processes(root) if kind != "service"]:
        if time.monotonic() > deadline:
            return left
        time.sleep(0.5)
    return []


def shared_memory() -> set[str]:
    """Names in shared memory."""
    return set(os.listdir("/dev/shm"))
