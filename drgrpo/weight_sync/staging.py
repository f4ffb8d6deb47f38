"""The staging buffer: memory that the trainer fills and the sampler maps, described by plain JSON values.

On a CPU it is a file in shared memory, unlinked once both sides have mapped it; on a GPU it is device memory exported
once through CUDA IPC. Neither side ever unpickles anything.
"""

import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drgrpo.leftovers import SHARED_MEMORY, staging_prefix

_EXPANDABLE = "expandable_segments:True"


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor in the buffer: checkpoint name, dtype name, shape, byte offset."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


class StagingBuffer:
    """The trainer's side: `tensor` [nbytes] uint8 and the `handle` with which the sampler opens it."""

    def __init__(self, nbytes: int, device: torch.device) -> None:
        if device.type == "cuda":
            with _plain_segments():
                self.tensor = torch.empty(nbytes, dtype=torch.uint8, device=device)
            self.handle = _export_cuda(self.tensor)
        else:
            descriptor, path = tempfile.mkstemp(prefix=staging_prefix(), dir=SHARED_MEMORY)
            os.ftruncate(descriptor, nbytes)
            self.tensor = _map(descriptor, nbytes)
            os.close(descriptor)
            self.handle = {"transport": "shared_memory", "path": path, "nbytes": nbytes}

    def unlink(self) -> None:
        """Remove the name once the sampler has mapped the memory, or never will; a later crash then leaves nothing."""
        if "path" in self.handle:
            Path(self.handle["path"]).unlink(missing_ok=True)

    def put(self, weights: Iterable[tuple[str, Tensor]]) -> list[Entry]:
        """Copy tensors in, 256-byte aligned; returns where they lie. Raises ValueError if they do not fit."""
        entries, offset = [], 0
        for name, weight in weights:
            nbytes = weight.numel() * weight.element_size()
            if offset + nbytes > self.tensor.numel():
                raise ValueError(f"{name} ends at byte {offset + nbytes} of a staging buffer of {self.tensor.numel()}")
            self.tensor[offset : offset + nbytes].view(weight.dtype).copy_(weight.reshape(-1))
            entries.append(Entry(name, str(weight.dtype).removeprefix("torch."), tuple(weight.shape), offset))
            offset += -(-nbytes // 256) * 256
        return entries


def open_staging(handle: dict[str, Any], device: torch.device) -> Tensor:
    """The sampler's side: the same memory as a [nbytes] uint8 tensor."""
    if handle["transport"] == "cuda_ipc":
        return _import_cuda(handle, device)
    descriptor = os.open(handle["path"], os.O_RDWR)
    try:
        return _map(descriptor, handle["nbytes"])
    finally:
        os.close(descriptor)


def view(buffer: Tensor, entry: Entry) -> Tensor:
    """The tensor that `entry` describes, without a copy."""
    dtype = getattr(torch, entry.dtype)
    numel = 1
    for size in entry.shape:
        numel *= size
    return buffer[entry.offset : entry.offset + numel * dtype.itemsize].view(dtype).view(entry.shape)


def _map(descriptor: int, nbytes: int) -> Tensor:
    return torch.frombuffer(mmap.mmap(descriptor, nbytes), dtype=torch.uint8)


@contextmanager
def _plain_segments() -> Iterator[None]:
    """CUDA IPC exports no memory of expandable segments, which the trainer's environment asks torch for."""
    settings = os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "")
    is_expandable = _EXPANDABLE in settings
    # Options that are left out go back to their defaults, so all are given.
    if is_expandable:
        torch.cuda.memory._set_allocator_settings(settings.replace(_EXPANDABLE, "expandable_segments:False"))
    try:
        yield
    finally:
        if is_expandable:
            torch.cuda.memory._set_allocator_settings(settings)


def _export_cuda(tensor: Tensor) -> dict[str, Any]:
    _, handle, nbytes, offset, counter, counter_offset, event, event_sync = tensor.untyped_storage()._share_cuda_()
    return {
        "transport": "cuda_ipc",
        "memory": handle.hex(),
        "nbytes": nbytes,
        "offset": offset,
        "counter": counter.hex(),
        "counter_offset": counter_offset,
        "event": event.hex(),
        "event_sync": event_sync,
    }


def _import_cuda(handle: dict[str, Any], device: torch.device) -> Tensor:
    storage = torch.UntypedStorage._new_shared_cuda(
        device.index or 0,
        bytes.fromhex(handle["memory"]),
        handle["nbytes"],
        handle["offset"],
        bytes.fromhex(handle["counter"]),
        handle["counter_offset"],
        bytes.fromhex(handle["event"]),
        handle["event_sync"],
    )
    return torch.empty(0, dtype=torch.uint8, device=device).set_(storage)
