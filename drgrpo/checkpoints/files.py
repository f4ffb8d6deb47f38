"""Writing and reading single files of a checkpoint, durably and with the digest of what was meant to be written.

Tensors are in the safetensors format. It is written here so that each byte is hashed on its way to the disk (a file
read back for its digest would vouch for whatever the disk made of it) and a full disk is an OSError.
"""

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drgrpo.checkpoints.directory import CheckpointError, FileRecord

_CHUNK = 16 << 20
_MAX_HEADER = 100 << 20
_DTYPES = {"float32": "F32", "uint8": "U8"}


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What a safetensors header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]


def write_tensors(path: Path, tensors: Mapping[str, npt.NDArray[Any]]) -> FileRecord:
    """Write float32 and uint8 arrays as one safetensors file, in the order given; equal arrays give equal bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, array in tensors.items():
        header[name] = {
            "dtype": _DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors start aligned
    return write_file(path, _tensor_bytes(encoded, tensors))


def write_json(path: Path, value: Any) -> FileRecord:
    """Write `value` as JSON. Raises ValueError or TypeError for what JSON cannot hold."""
    return write_file(path, [json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"])


def write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> FileRecord:
    """Write `chunks` to a new file and force it to disk. Raises OSError as the disk does, ENOSPC among them."""
    digest, nbytes = hashlib.sha256(), 0
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            nbytes += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return FileRecord(nbytes, digest.hexdigest())


def link_file(source: str | Path, target: str | Path) -> None:
    """A second name for the file, which nobody writes to any more; a synced copy where the file system cannot link."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
        with open(target, "rb") as copy:
            os.fsync(copy.fileno())


def check_digest(path: Path, record: FileRecord) -> None:
    """Raises CheckpointError when the file's bytes are not the ones that were written."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path.parent}: {path.name} cannot be read: {error}") from error
    if digest != record.sha256:
        raise CheckpointError(f"{path.parent}: {path.name} is corrupt: sha256 {digest}, expected {record.sha256}")


def read_header(path: Path) -> dict[str, TensorHeader]:
    """Names, dtypes and shapes of a safetensors file, without its data. Raises CheckpointError if it is none."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MAX_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        return {name: TensorHeader(str(entry["dtype"]), tuple(entry["shape"])) for name, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise CheckpointError(f"{path.parent}: {path.name} is no safetensors file: {error!r}") from error


def _tensor_bytes(header: bytes, tensors: Mapping[str, npt.NDArray[Any]]) -> Iterator[bytes | memoryview]:
    yield struct.pack("<Q", len(header))
    yield header
    for array in tensors.values():
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        for start in range(0, len(flat), _CHUNK):
            yield flat[start : start + _CHUNK]
