"""The arms that run at present, each in a process of its own: its memory comes back, and a crash costs that arm."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from drgrpo.redaction import mask
from drgrpo.report import clean

COMMAND = [sys.executable, "-m", "flows.arm"]
REFUSED = 2
"""Exit status of an arm that starting again would not help: refused, stopped by a gate, or dead too often."""

_PROJECT = Path(__file__).parents[2]
_TICK_S = 2.0
_GRACE_S = 15.0
_TAIL_BYTES = 4000


class ArmDied(RuntimeError):
    """The process of an arm died. What it did is on disk, so it goes on from there when it is started again."""


class ArmProcesses:
    """Starts processes and waits for them; leaving the block ends those that still run.

    Args:
        notice_s: From SIGTERM to SIGKILL of the whole process group, seconds, if that is more than the grace of 15 that
            an arm gets in any case.
        is_cancelled: Whether a person cancels the comparison: then the notice counts for nothing.
    """

    def __init__(self, *, notice_s: float, is_cancelled: Callable[[], bool]) -> None:
        self._notice_s, self._is_cancelled = notice_s, is_cancelled
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._is_over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self._is_cancelled() or isinstance(error, KeyboardInterrupt):
            self.stop(signal.SIGINT, _GRACE_S)  # which an arm does not hold up for a checkpoint
        else:
            self.stop(signal.SIGTERM, max(_GRACE_S, self._notice_s))

    def run(
        self, job: Mapping[str, Any], *, environment: Mapping[str, str], log: Path, on_tick: Callable[[float], None]
    ) -> int:
        """Run one arm to its end; returns its exit status, minus the signal's number where one ended it.

        Args:
            job: JSON for its standard input.
            environment: All of its environment variables.
            log: What it prints is appended here.
            on_tick: Called every few seconds and at the end with the seconds since the start.
        """
        started = time.monotonic()
        process = self._start(environment, log)
        try:
            _feed(process, job)
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(timeout=_TICK_S)
                on_tick(time.monotonic() - started)
        finally:
            _end_group(process)
            with self._lock:
                self._running.discard(process)
            on_tick(time.monotonic() - started)

    def stop(self, number: signal.Signals, grace_s: float) -> None:
        """End every process with a signal, what is left of it after the grace with SIGKILL, and start none any more."""
        with self._lock:
            self._is_over = True
            running = [process for process in self._running if process.poll() is None]
        for process in running:
            process.send_signal(number)
        deadline = time.monotonic() + grace_s
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.0, deadline - time.monotonic()))
            _end_group(process)

    def _start(self, environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(filter(None, [str(_PROJECT), environment.get("PYTHONPATH", "")]))
        log.parent.mkdir(parents=True, exist_ok=True)
        with self._lock, log.open("ab") as output:
            if self._is_over:
                raise RuntimeError("the comparison is over")
            process = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**environment, "PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C in a terminal comes to the comparison, which passes it on
            )
            self._running.add(process)
        return process


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a process and of those that it started: nothing of it may keep the device."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_words(log: Path) -> str:
    """The last line that a process printed, which names the error where there was one."""
    text = log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace") if log.exists() else ""
    return clean(mask(next((line for line in reversed(text.splitlines()) if line.strip()), "")))


def _feed(process: subprocess.Popen[bytes], job: Mapping[str, Any]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as stdin:  # one that died at once has its exit status
        stdin.write(json.dumps(job).encode())
