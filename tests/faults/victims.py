"""Finding and killing the processes of a run by what they are."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from drgrpo.leftovers import orphans

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
    # A worker that Ray starts for an engine is `ray::IDLE` until it is one; Ray replaces it when it dies before that.
    return environment.get("DRGRPO_ENGINE", "other") if "ray::Process" in line else "other"


def find(root: Path, kind: str) -> psutil.Process | None:
    """The first process of that kind."""
    return next((process for found, process in processes(root) if found == kind), None)


def kill(root: Path, kind: str) -> int | None:
    """kill -9 of the first process of that kind; its id, or None when there is none."""
    process = find(root, kind)
    if process is None:
        return None
    process.send_signal(signal.SIGKILL)
    return int(process.pid)


def left_behind(root: Path, timeout_s: float = 30.0) -> list[str]:
    """What still runs of the machine after at most `timeout_s` seconds, services aside."""
    deadline = time.monotonic() + timeout_s
    while left := [f"{kind} {process.pid}" for kind, process in processes(root) if kind != "service"]:
        if time.monotonic() > deadline:
            return left
        time.sleep(0.5)
    return []


def kill_grader_at_work(root: Path, timeout_s: float = 60.0) -> int | None:
    """kill -9 of a grader's worker in the middle of a completion, of which `slow_parity` leaves a mark; its id."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for mark in root.glob("grading-*"):
            pid = int(mark.name.removeprefix("grading-"))
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                if mark.exists():  # it can end this completion no more
                    return pid
        time.sleep(0.01)
    return None


def listening(root: Path) -> set[int]:
    """Ports on which processes of the run listen."""
    ports: set[int] = set()
    for kind, process in processes(root):
        with suppress(psutil.Error):
            sockets = process.net_connections("inet") if kind != "service" else []
            ports |= {found.laddr.port for found in sockets if found.status == psutil.CONN_LISTEN}
    return ports


def taken(ports: set[int], timeout_s: float = 30.0) -> set[int]:
    """Those of the ports that cannot be had after at most `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while left := {port for port in ports if not _is_free(port)}:
        if time.monotonic() > deadline:
            return left
        time.sleep(0.5)
    return set()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def shared_memory() -> set[str]:
    """Names in shared memory that processes of runs left which are gone."""
    return {path.name for path in orphans()}
