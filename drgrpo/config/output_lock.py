"""One run per output directory: a lock that ends with the process that holds it, however that process ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drgrpo.config.errors import ConfigError, Mistake

LOCK_NAME = ".lock"


@contextmanager
def hold_output_directory(directory: Path) -> Iterator[Path]:
    """Create the directory and hold it for one run; raises `ConfigError` when another process holds it."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK_NAME).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError([_in_use(directory)]) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield directory


def _in_use(directory: Path) -> Mistake:
    holder = (directory / LOCK_NAME).read_text().strip()
    problem = f"in use by another run (process {holder})" if holder else "in use by another run"
    return Mistake("output directory", str(directory), problem, "wait for it, or choose another directory")
