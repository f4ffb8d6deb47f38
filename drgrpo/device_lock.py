"""One run at a time on a GPU of this machine. A lock ends with the process that holds it, however that process ends."""

import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from drgrpo.settings import Settings

logger = logging.getLogger(__name__)

_POLL_S = 1.0


@contextmanager
def hold_devices(settings: Settings) -> Iterator[None]:
    """Wait until no other run of this machine uses our GPUs, and keep them; on a cluster Ray hands them out."""
    devices = [] if settings.device == "cpu" or settings.ray_address else visible_devices()
    with ExitStack() as stack:
        for device in sorted(devices):
            stack.enter_context(hold_device(device))
        yield


@contextmanager
def hold_device(device: str, folder: Path | None = None) -> Iterator[None]:
    """Wait for one device and keep it. `device` is its index or UUID, `folder` the place of the lock files."""
    path = (folder or Path(tempfile.gettempdir())) / f"drgrpo-device-{device.replace('/', '_')}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    with os.fdopen(descriptor, "r+") as lock:
        told = False
        while not _locked(lock):
            if not told:
                lock.seek(0)
                logger.warning("waiting for GPU %s: process %s uses it", device, lock.read() or "unknown")
                told = True
            time.sleep(_POLL_S)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def visible_devices() -> list[str]:
    """Indices or UUIDs of the GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device.strip() for device in visible.split(",") if device.strip() not in ("", "-1")]
    return [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
