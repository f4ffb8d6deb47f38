"""One Ray actor class for every engine: it builds an object from its dotted path inside a fresh process.

The flow process thereby names engines without importing torch, vLLM or DeepSpeed.
"""

import importlib
from typing import Any

from drgrpo.cluster.waiting import result
from drgrpo.cluster.watchdog import time_limit, watch


class Process:
    """A process that holds one object and calls its methods, one at a time."""

    def __init__(self, target: str, owner_pid: int, call_timeout_s: float, *args: Any, **kwargs: Any) -> None:
        watch(owner_pid)
        self._call_timeout_s = call_timeout_s
        module, name = target.rsplit(".", 1)
        with time_limit(call_timeout_s):
            self._object = getattr(importlib.import_module(module), name)(*args, **kwargs)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Result of the object's method; a call beyond the time limit ends the process."""
        with time_limit(self._call_timeout_s):
            return getattr(self._object, method)(*args, **kwargs)

    def ping(self) -> None:
        """Answer, unless a call goes on."""


class Remote:
    """A `Process` seen from outside: `start` returns a reference, `call` waits for the result."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def start(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Reference to the result of the method."""
        return self.handle.call.remote(method, *args, **kwargs)

    def start_pair(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """References to the two values that the method returns, so that another engine can be given one of them."""
        references: list[Any] = self.handle.call.options(num_returns=2).remote(method, *args, **kwargs)
        return references

    def ping(self) -> Any:
        """Reference to an answer."""
        return self.handle.ping.remote()

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Result of the method; raises what it raised."""
        return result(self.start(method, *args, **kwargs))


class RemoteSampler:
    """A rollout process as the trainer's `drgrpo.weight_sync.sender.Sampler`."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    def open_staging(self, handle: dict[str, Any]) -> None:
        """Map the trainer's staging buffer."""
        self._remote.call("open_staging", handle)

    def start_push(self) -> None:
        """Begin a push."""
        self._remote.call("start_push")

    def load_bucket(self, entries: list[list[Any]], policy_version: int) -> None:
        """Load the tensors that now lie in the staging buffer."""
        self._remote.call("load_bucket", entries, policy_version)

    def finish_push(self) -> None:
        """Make the pushed weights current."""
        self._remote.call("finish_push")
