"""Writing a checkpoint: beside, synced, renamed, and whole only once its manifest is there.

A crash between any two of these operations leaves every older checkpoint as it was and the new one ignored.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from drgrpo.checkpoints.directory import (
    FORMAT,
    MANIFEST,
    PARTIAL,
    REPLACED,
    FileRecord,
    checkpoint_step,
    find_leftovers,
    looks_whole,
)
from drgrpo.durable import replace_json, sync_directory


def begin(path: Path) -> Path:
    """Clear what crashes left beside `path` and return a new empty directory to write the checkpoint's files into.

    Nothing else may be writing a checkpoint under the same root. Raises ValueError for a name other than step-000012.
    """
    checkpoint_step(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in find_leftovers(path.parent):
        shutil.rmtree(leftover)
    partial = path.with_name(path.name + PARTIAL)
    partial.mkdir()
    return partial


def discard(path: Path) -> None:
    """Give back the space of a checkpoint that could not be written; one that became whole stays."""
    shutil.rmtree(path.with_name(path.name + PARTIAL), ignore_errors=True)
    if not looks_whole(path):
        shutil.rmtree(path, ignore_errors=True)


def publish(partial: Path, path: Path, files: Mapping[str, FileRecord]) -> None:
    """Rename `partial`, whose `files` are all synced, to `path` and make it whole."""
    sync_directory(partial)
    replaced = path.with_name(path.name + REPLACED)
    if looks_whole(path):
        shutil.rmtree(replaced, ignore_errors=True)
        os.rename(path, replaced)
    elif path.exists():
        shutil.rmtree(path)
    os.rename(partial, path)
    sync_directory(path.parent)
    entries = {name: {"bytes": record.nbytes, "sha256": record.sha256} for name, record in sorted(files.items())}
    replace_json(path / MANIFEST, {"format": FORMAT, "files": entries})
    shutil.rmtree(replaced, ignore_errors=True)
