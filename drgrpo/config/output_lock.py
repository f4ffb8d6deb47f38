"""One run per output directory: a lock that ends with the process that holds it, however that process ends."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drgrpo.config.errors import ConfigError, Mistake

LOCK_NAME = ".lock"
_DELAY_S = 2.0


@contextmanager
def hold_output_directory(directory: Path, owner: str = "") -> Iterator[Path]:
    """Create the directory and hold it for one run; raises `ConfigError` when another process holds it.

    `owner` is the id of the flow run: after a death Prefect may start one twice. While another process of the same
    flow run holds the directory it is waited for; then all files are there, and this one ends alike.
    """
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        while not _lock(descriptor):
            if not is_held_by(directory, owner):
                raise ConfigError([_in_use(directory)])
            time.sleep(_DELAY_S)
        content = f"{os.getpid()} {owner}".encode()
        os.pwrite(descriptor, content, 0)  # before the end is cut off: a reader never finds it empty
        os.ftruncate(descriptor, len(content))
        yield directory
    finally:
        os.close(descriptor)


def is_held_by(directory: Path, owner: str) -> bool:
    """Whether the last that held the directory was of this flow run; never for an empty id."""
    return bool(owner) and _holder(directory)[1] == owner


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(directory: Path) -> tuple[str, str]:
    """Process and flow run of the last that held the directory."""
    process, _, owner = (directory / LOCK_NAME).read_text().partition(" ")
    return process, owner


def _in_use(directory: Path) -> Mistake:
    process, _ = _holder(directory)
    problem = f"in use by another run (process {process})" if process else "in use by another run"
    return Mistake("output directory", str(directory), problem, "wait for it, or choose another directory")
