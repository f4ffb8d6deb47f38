"""An engine's process that notes when it is busy and with what, for the account of where a step's time goes."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drgrpo.cluster.process import Process

ENGINES = ("drgrpo.rollout.engine.RolloutEngine", "drgrpo.trainer.rank.TrainerRank")


def busy_file(owner_pid: int) -> Path:
    """Where the engines of one flow process note their calls: a line `start end name` for each, in seconds."""
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
    """A `Process` whose calls are noted as `<class>.<method>` if it holds an engine."""

    def __init__(self, target: str, owner_pid: int, *args: Any, **kwargs: Any) -> None:
        self._name = target.rsplit(".", 1)[1]
        self._file = busy_file(owner_pid) if target in ENGINES else None
        super().__init__(target, owner_pid, *args, **kwargs)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Result of the object's method."""
        if self._file is None:
            return super().call(method, *args, **kwargs)
        with noted(self._file, f"{self._name}.{method}"):
            return super().call(method, *args, **kwargs)
