"""A run's processes that note when they are busy and with what, for the account of where a step's time goes."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drgrpo.cluster.process import Process

PAUSE_VARIABLE = "BENCHMARK_UPDATE_PAUSE_S"
"""Environment variable: seconds that every update takes longer."""

HOST = "Host"
"""The process between the engines, by its class; what it does is no engine's work."""


def busy_file(owner_pid: int) -> Path:
    """Where the processes of one flow note their calls: a line `start end name` for each, in seconds."""
    return Path(tempfile.gettempdir()) / f"drgrpo-busy-{owner_pid}"


@contextmanager
def noted(file: Path, name: str) -> Iterator[None]:
    """Note the block as busy time of `name`. The clock is the machine's, the same for all processes."""
    started = time.monotonic()
    try:
        yield
    finally:
        with file.open("a") as notes:
            notes.write(f"{started} {time.monotonic()} {name}\n")


class TimedProcess(Process):
    """A `Process` whose calls are noted as `<class>.<method>`."""

    def __init__(self, target: str, owner_pid: int, *args: Any, **kwargs: Any) -> None:
        self._name = target.rsplit(".", 1)[1]
        self._file = busy_file(owner_pid)
        super().__init__(target, owner_pid, *args, **kwargs)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Result of the object's method."""
        name = f"{self._name}.{method}"
        with noted(self._file, name):
            if name == "TrainerRank.update":
                time.sleep(float(os.environ.get(PAUSE_VARIABLE, "0")))
            return super().call(method, *args, **kwargs)
