"""One run at a time on a GPU of this machine, or as many as share it. A lock ends with the process that holds it."""

import fcntl
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
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
        for device in sorted({uuid(device) for device in devices}):
            stack.enter_context(hold_device(device, shared_by=settings.runs_per_gpu))
        yield


@contextmanager
def hold_device(device: str, folder: Path | None = None, *, shared_by: int = 1) -> Iterator[None]:
    """Wait for one device and keep it. `device` is its index or UUID, `folder` the place of the lock files.

    `shared_by`: runs that may hold it at once. One that wants it alone waits for all of them.
    """
    path = (folder or Path(tempfile.gettempdir())) / f"drgrpo-device-{device.replace('/', '_')}.lock"
    if shared_by == 1:
        with _hold([path], fcntl.LOCK_EX, device):
            yield
    else:
        places = [path.with_suffix(f".{place}.lock") for place in range(shared_by)]
        with _hold([path], fcntl.LOCK_SH, device), _hold(places, fcntl.LOCK_EX, device):
            yield


@contextmanager
def _hold(paths: Sequence[Path], mode: int, device: str) -> Iterator[None]:
    """Wait until one of the files can be locked, and keep it."""
    with ExitStack() as stack:
        locks = [stack.enter_context(os.fdopen(_open(path), "r+")) for path in paths]
        told = False
        while (lock := next((lock for lock in locks if _locked(lock, mode)), None)) is None:
            if not told:
                holder = locks[0].read(20)
                logger.warning(
                    "waiting for GPU %s: process %s uses it", device, holder if holder.isdecimal() else "unknown"
                )
                told = True
            time.sleep(_POLL_S)
        lock.seek(0)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def uuid(device: str, gpus: Path = Path("/proc/driver/nvidia/gpus")) -> str:
    """UUID of a GPU given by its index or a beginning of its UUID, as CUDA takes both; any other name as it is."""
    for path in gpus.glob("*/information"):
        text = path.read_text()
        found, minor = re.search(r"GPU UUID:\s*(\S+)", text), re.search(r"Device Minor:\s*(\d+)", text)
        if found and minor and (device == minor[1] or (device.startswith("GPU-") and found[1].startswith(device))):
            return found[1]
    return device


def visible_devices() -> list[str]:
    """Indices or UUIDs of the GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device.strip() for device in visible.split(",") if device.strip() not in ("", "-1")]
    return [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]


def _open(path: Path) -> int:
    """Open a lock file that every user of the machine may lock; the first makes it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW)
    except FileExistsError:  # the kernel lets nobody create over another user's file in /tmp, so it is only opened
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    os.fchmod(descriptor, 0o666)  # whatever the umask
    return descriptor


def _locked(file: IO[str], mode: int) -> bool:
    try:
        fcntl.flock(file, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
