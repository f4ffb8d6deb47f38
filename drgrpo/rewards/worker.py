"""The grader process: reads chunks of completions as JSON lines from a socket, answers each with one JSON line.

Started by `drgrpo.rewards.process`; it shares nothing with its parent but this socket, and dies with it.
"""

import ctypes
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any

from drgrpo.rewards.registry import RewardFunction, accepted_keywords, load_reward_functions

_PR_SET_PDEATHSIG = 1
_MAX_MESSAGE = 500

Grader = tuple[str, RewardFunction, frozenset[str] | None]


def main() -> None:
    """Serve until the parent closes the socket; arguments: the socket's file descriptor and the parent's pid."""
    channel, parent = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    _die_with(parent)
    requests = channel.makefile("rb")
    setup = json.loads(requests.readline())
    _limit_memory(setup["memory_bytes"])
    try:
        graders = [(*pair, accepted_keywords(pair[1])) for pair in load_reward_functions(setup["functions"]).items()]
    except BaseException as error:
        _send(channel, {"failed": str(error) if isinstance(error, ValueError) else _describe(error)})
        return
    _send(channel, {"ready": os.getpid()})
    for line in requests:
        for completion, answer, problem in json.loads(line):
            _send(channel, _grade(graders, completion, answer, problem))


def _grade(graders: list[Grader], completion: str, answer: str, problem: dict[str, Any]) -> dict[str, Any]:
    rewards: dict[str, float] = {}
    for name, function, keywords in graders:
        known = problem if keywords is None else {key: problem[key] for key in keywords & problem.keys()}
        try:
            rewards[name] = _number(function(completion, answer, **known))
        except BaseException as error:
            # Also SystemExit, and the timeouts that libraries derive from BaseException: they cost this sample only.
            return {"rewards": rewards, "error": f"{name}: {_describe(error)}"}
    return {"rewards": rewards}


def _number(value: Any) -> float:
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        raise TypeError(f"a reward must be a number, not {type(value).__name__}")
    reward = float(value)
    if reward - reward != 0.0:
        raise ValueError(f"a reward must be finite, not {reward}")
    return reward


def _describe(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:_MAX_MESSAGE]
    except BaseException:
        return type(error).__name__


def _send(channel: socket.socket, reply: Mapping[str, Any]) -> None:
    channel.sendall(json.dumps(reply).encode() + b"\n")


def _die_with(parent: int) -> None:
    # The end of the socket is noticed only between completions; the kernel also kills a worker that hangs.
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.exit(0)


def _limit_memory(num_bytes: int) -> None:
    # Data rather than address space: libraries map many gigabytes of files that they never touch.
    resource.setrlimit(resource.RLIMIT_DATA, (num_bytes, num_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
