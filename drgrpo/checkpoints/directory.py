"""Where checkpoints lie and what makes one whole.

checkpoints/step-000012/             weights, moments, state.json
checkpoints/step-000012/manifest.json   size and sha256 of every other file; written last
checkpoints/step-000012.partial/     being written, or left by a crash: ignored
checkpoints/best.json                the step that evaluated best
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

MANIFEST = "manifest.json"
STATE = "state.json"
FORMAT = 1

PARTIAL = ".partial"  # being written
REPLACED = ".replaced"  # the former checkpoint of a step that is being saved again
PRUNED = ".pruned"  # being deleted

_WHOLE_NAME = re.compile(r"step-(\d{6,})(\.replaced)?")
_LEFTOVER_NAME = re.compile(r"step-\d{6,}\.(partial|pruned)")


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written, or that is not whole or not of this run; names it and the reason."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of a checkpoint: its size in bytes and the hex sha256 of what was written."""

    nbytes: int
    sha256: str


def checkpoint_path(root: Path, step: int) -> Path:
    """The directory of the checkpoint taken after iteration `step`."""
    return root / f"step-{step:06d}"


def checkpoint_step(path: Path) -> int:
    """The iteration in a checkpoint directory's name. Raises ValueError for any other name."""
    match = _WHOLE_NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path} is not named like a checkpoint: step-000012")
    return int(match[1])


def find_checkpoints(root: Path) -> list[Path]:
    """Checkpoint directories under `root`, newest first, whole or not; those still being written are left out."""
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if _WHOLE_NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: (checkpoint_step(path), not path.name.endswith(REPLACED)), reverse=True)


def find_leftovers(root: Path) -> list[Path]:
    """Directories that a crash left half written or half deleted."""
    return sorted(path for path in root.iterdir() if _LEFTOVER_NAME.fullmatch(path.name))


def read_manifest(path: Path) -> dict[str, FileRecord]:
    """The files of the checkpoint at `path`, by name.

    Raises:
        CheckpointError: There is no manifest, it cannot be read, or a file is missing or of another size.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        if manifest["format"] != FORMAT:
            raise CheckpointError(f"{path}: format {manifest['format']}, this version reads {FORMAT}")
        records = {
            name: FileRecord(int(file["bytes"]), str(file["sha256"])) for name, file in manifest["files"].items()
        }
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no {MANIFEST}, so it was not finished") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: unreadable {MANIFEST}: {error!r}") from error
    for name, record in records.items():
        _check_size(path, name, record)
    return records


def looks_whole(path: Path) -> bool:
    """Whether the manifest is there and every file has its size; contents are not read."""
    try:
        read_manifest(path)
    except CheckpointError:
        return False
    return True


def _check_size(path: Path, name: str, record: FileRecord) -> None:
    if Path(name).name != name:
        raise CheckpointError(f"{path}: {MANIFEST} names a file outside of it: {name!r}")
    try:
        nbytes = (path / name).stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path}: {name} cannot be read: {error}") from error
    if nbytes != record.nbytes:
        raise CheckpointError(f"{path}: {name} has {nbytes} bytes, expected {record.nbytes}")
