"""Small files that survive a power cut: whole as they were, or whole as they are to be."""

import json
import os
from pathlib import Path
from typing import Any


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, synced, and rename it into place. Raises OSError, and leaves `path` as it was."""
    beside = path.with_name(f".{path.name}.tmp")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    sync_directory(path.parent)


def replace_json(path: Path, value: Any) -> None:
    """`replace_file` with `value` as JSON, keys in their order. Raises TypeError for what JSON cannot hold."""
    replace_file(path, json.dumps(value, indent=1).encode() + b"\n")


def sync_directory(path: Path) -> None:
    """Force a directory's entries to disk: a rename survives a power cut only once its directory does."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
