"""Run a command so that nothing of it outlives us: `python -m deployments.guard PARENT_PID COMMAND...`.

The guard adopts every orphan below it and ends them all when it is told to stop, when the command ends, and when the
process that started the guard dies, by whatever signal.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

import psutil

GRACE_S = 15.0
"""Seconds that a service and its flows have to close what they opened."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def guard(parent: int, command: Sequence[str]) -> int:
    """Run `command` until it ends or SIGTERM, SIGINT or SIGHUP arrives; its exit status, or 128 + the signal."""
    for number in _SIGNALS:
        signal.signal(number, _stop)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the line above
        return 128 + signal.SIGTERM
    try:
        try:  # around the start too: a signal in the middle of it must not leave the command behind
            child = subprocess.Popen(command)  # by a name: without one it would reap its process itself
            return _wait(child.pid)
        finally:
            _ignore_signals()  # one that comes before the last of them is ignored leads to the end below too
    finally:
        end_descendants(GRACE_S)


def end_descendants(grace_s: float) -> None:
    """End everything below this process.

    The command and its children are asked with SIGTERM and given `grace_s` seconds, so that a flow can close what it
    opened; then all that is left is asked, and killed after two seconds more.
    """
    this = psutil.Process()
    near = [child for process in this.children() for child in [process, *_children(process)]]
    _end(near, signal.SIGTERM, grace_s)
    _end(this.children(recursive=True), signal.SIGTERM, 2)
    while left := this.children(recursive=True):
        _end(left, signal.SIGKILL, 1)


def _end(processes: Sequence[psutil.Process], number: signal.Signals, timeout_s: float) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    psutil.wait_procs(processes, timeout=timeout_s)


def _wait(pid: int) -> int:
    """Exit status of the child; orphans that were adopted are reaped on the way."""
    while True:
        ended, status = os.wait()
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _stop(number: int, _: object) -> None:
    _ignore_signals()
    sys.exit(128 + number)


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children()
    except psutil.NoSuchProcess:
        return []


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")


if __name__ == "__main__":
    sys.exit(guard(int(sys.argv[1]), sys.argv[2:]))
