"""Reward functions that misbehave, for the tests of the grader pool; light, because every worker imports it."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any


def trouble(completion: str, answer: str, **problem: Any) -> Any:
    """Do what the completion says."""
    kind, _, argument = completion.partition(" ")
    return ACTIONS[kind](argument)


def _hang_in_c(_: str) -> float:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ctypes.PyDLL(None).pause()  # PyDLL keeps the GIL: no thread and no signal handler of Python runs again.
    return 1.0


def _raise(error: BaseException) -> float:
    raise error


def _sleep(seconds: float) -> float:
    time.sleep(seconds)
    return 1.0


def _interrupt() -> float:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with SIGINT ignored
    signal.raise_signal(signal.SIGINT)
    return _sleep(5.0)  # Python runs the signal's handler at its next check, which may be after a mere return.


def _spawn(path: str) -> float:
    child = subprocess.Popen(["sleep", "1000"])
    with open(path, "w") as file:
        file.write(str(child.pid))
    return _hang_in_c("")


def _exit_once(path: str) -> float:
    if os.path.exists(path):
        return 1.0
    open(path, "w").close()
    os.kill(os.getpid(), signal.SIGKILL)
    return 0.0


def _wait_to_be_killed(path: str) -> float:
    """The first time tells its process id in the file and waits; the next time all is well."""
    if os.path.exists(path):
        return 1.0
    with open(f"{path}.partial", "w") as file:
        file.write(str(os.getpid()))
    os.rename(f"{path}.partial", path)
    return _sleep(1000)


ACTIONS: dict[str, Any] = {
    "good": lambda _: 1.0,
    "value": json.loads,
    "text": lambda text: text,
    "sleep": lambda seconds: _sleep(float(seconds)),
    "loop": lambda _: max(iter(int, 1)),
    "hang": _hang_in_c,
    "exit": lambda code: os._exit(int(code)),
    "segfault": lambda _: ctypes.string_at(0),
    "raise": lambda text: _raise(RuntimeError(text)),
    "base": lambda text: _raise(BaseException(text)),
    "sysexit": lambda _: sys.exit(3),
    "unprintable": lambda _: _raise(type("E", (Exception,), {"__str__": lambda self: 1 // 0})()),
    "hoard": lambda gib: float(len(bytearray(int(gib) * 2**30)) > 0),
    "deep": lambda _: ACTIONS["deep"](_),
    "noise": lambda text: print(text * 1000) or (os.write(1, b'{"rewards": {}}\n') and 1.0),
    "closefds": lambda _: os.closerange(3, 100),
    "pid": lambda _: os.getpid(),
    "spawn": _spawn,
    "once": _exit_once,
    "mortal": _wait_to_be_killed,
    "interrupted": lambda _: _interrupt(),
}


def level(completion: str, answer: str, level: int) -> float:
    """A further column of the dataset."""
    return float(level)


def length(completion: str, answer: str) -> int:
    return len(completion)


def columns(completion: str, answer: str, question: str, level: int) -> float:
    return float(question == "why" and level == 3)


def everything(completion: str, answer: str, **problem: Any) -> float:
    return float(problem == {"question": "why", "answer_mode": "lenient", "level": 3})


async def coroutine(completion: str, answer: str) -> float:
    return 1.0


def no_answer(completion: str) -> float:
    return 1.0
