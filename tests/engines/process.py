"""An engine in a fresh process of its own, called over a pipe: what Ray does in a run, without Ray."""

import faulthandler
import importlib
import os
import traceback
from collections.abc import Container, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

_TIMEOUT_S = 300.0


class EngineProcess:
    """Builds the object at dotted path `target` in a new process and calls its methods there, one at a time.

    `spare` is a second way in, for another engine: hand it to that engine's `EngineProcess` as an argument.
    """

    def __init__(self, target: str, *args: Any, environment: Mapping[str, str]) -> None:
        context = get_context("spawn")
        self.connection, ours = context.Pipe()
        self.spare, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=([ours, theirs], dict(environment), target, args))
        self._process.start()
        ours.close()
        theirs.close()
        self.pid = self._process.pid

    def start(self, method: str, *args: Any, **kwargs: Any) -> None:
        """Begin a call; `result` waits for it."""
        self.connection.send((method, args, kwargs))

    def result(self) -> Any:
        """What the call begun last returned; raises what it raised, or EOFError when the process is gone."""
        return receive(self.connection)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Result of the object's method."""
        self.start(method, *args, **kwargs)
        return self.result()

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self.spare.close()
        self._process.join(timeout=20)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def answered(processes: Sequence[EngineProcess], *, but: Container[EngineProcess]) -> list[EngineProcess]:
    """Wait until any process, leaving out those in `but`, has answered; returns those that have."""
    asked = [process for process in processes if process not in but]
    ready = wait([process.connection for process in asked], _TIMEOUT_S)
    # without any answer, all of them: `result` raises the TimeoutError
    return [process for process in asked if process.connection in ready] or asked


def receive(connection: Connection) -> Any:
    """The next answer on a connection to an engine's process."""
    if not connection.poll(_TIMEOUT_S):
        raise TimeoutError(f"an engine has not answered for {_TIMEOUT_S:.0f} s")
    succeeded, value = connection.recv()
    if not succeeded:
        raise value
    return value


def _serve(connections: list[Connection], environment: dict[str, str], target: str, args: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    module, name = target.rsplit(".", 1)
    instance: Any = None
    while connections:
        ready = wait(connections)
        for connection in [known for known in connections if known in ready]:
            try:
                method, call_args, kwargs = connection.recv()
            except (EOFError, ConnectionResetError):
                connections.remove(connection)
                continue
            faulthandler.dump_traceback_later(_TIMEOUT_S - 5)  # what hangs says where, before it is given up
            try:
                instance = instance or getattr(importlib.import_module(module), name)(*args)
                answer = (True, getattr(instance, method)(*call_args, **kwargs))
            except Exception as error:
                error.add_note(traceback.format_exc())
                answer = (False, error)
            finally:
                faulthandler.cancel_dump_traceback_later()
            connection.send(answer)
