"""One grader process seen from its parent: start it, send completions, wait for replies up to a time limit, kill it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from drgrpo.rewards.grade import GradeItem

START_LIMIT_S = 120.0
_MIN_WAIT_S = 0.001  # A reply that is already there is read even when the limit has passed.


class WorkerDied(Exception):
    """The grader process ended, or its socket broke, before it replied."""


class GraderProcess:
    """A fresh interpreter that grades; it dies with the thread that started it (PR_SET_PDEATHSIG), hung or not."""

    def __init__(self, functions: Iterable[str], *, memory_bytes: int) -> None:
        """Start it without waiting. `memory_bytes` limits its private memory (RLIMIT_DATA)."""
        self._channel, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "drgrpo.rewards.worker", str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # What user functions print belongs in the log.
                env=_environment(),
                start_new_session=True,  # Ctrl-C is the parent's; the group is killed as a whole.
            )
        self._buffer = bytearray()
        self._setup = {"functions": list(functions), "memory_bytes": memory_bytes}

    def wait_until_ready(self) -> None:
        """Block until its functions are imported. Raises ValueError if they cannot be, WorkerDied if it was killed."""
        try:
            self._send(self._setup, START_LIMIT_S)
            reply = self.receive(START_LIMIT_S)
        except TimeoutError as error:
            raise ValueError(f"the reward functions took over {START_LIMIT_S:g} s to import") from error
        if "failed" in reply:
            raise ValueError(reply["failed"])

    def send(self, items: Sequence[GradeItem], answer_mode: str, timeout_s: float) -> None:
        """Hand over completions; a reply follows for each, in order. Raises WorkerDied or TimeoutError."""
        self._send([_request(item, answer_mode) for item in items], timeout_s)

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """The next reply. Raises TimeoutError after `timeout_s` seconds, WorkerDied if there will be none."""
        deadline = time.monotonic() + timeout_s
        while (end := self._buffer.find(b"\n")) < 0:
            self._channel.settimeout(max(deadline - time.monotonic(), _MIN_WAIT_S))
            try:
                received = self._channel.recv(65536)
            except ConnectionError:
                received = b""
            if not received:
                raise WorkerDied(self._death())
            self._buffer += received
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        reply: dict[str, Any] = json.loads(line)
        return reply

    @property
    def pid(self) -> int:
        """Its process id, which is also its process group."""
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL the process and all it started; whoever waits for its reply gets WorkerDied. From any thread."""
        with suppress(ProcessLookupError):
            if self._process.returncode is None:
                os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill it, reap it and close the socket."""
        self.kill()
        self._process.wait()
        self._channel.close()

    def _send(self, message: Any, timeout_s: float) -> None:
        self._channel.settimeout(timeout_s)
        try:
            self._channel.sendall(json.dumps(message, default=str).encode() + b"\n")
        except ConnectionError as error:
            raise WorkerDied(self._death()) from error

    def _death(self) -> str:
        self.kill()  # Before it is reaped, while its group is surely its own; this does not alter its exit code.
        code = self._process.wait()
        return f"the grader process died of signal {-code}" if code < 0 else f"the grader process exited with {code}"


def _request(item: GradeItem, answer_mode: str) -> tuple[str, str, dict[str, Any]]:
    columns = {key: value for key, value in item.columns.items() if key not in ("completion", "answer")}
    return item.completion, item.answer, {**columns, "question": item.question, "answer_mode": answer_mode}


def _environment() -> Mapping[str, str]:
    # The user's module is found as in the parent; one thread per worker, since the workers are the parallelism.
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**threads, **os.environ, "PYTHONPATH": path}
