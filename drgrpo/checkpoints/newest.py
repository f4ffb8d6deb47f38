"""Which checkpoint to go on from: the newest one whose every byte is the one that was written."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from drgrpo.checkpoints.directory import (
    STATE,
    CheckpointError,
    FileRecord,
    checkpoint_step,
    find_checkpoints,
    read_manifest,
)
from drgrpo.checkpoints.files import check_digest, read_header

_THREADS = 8


class Newest(NamedTuple):
    """The newest whole checkpoint (None: there is none), its state, and why newer ones were skipped."""

    path: Path | None
    state: dict[str, Any]
    skipped: list[str]


def newest_whole(
    root: Path,
    *,
    config_digests: Collection[str] = (),
    shapes: Mapping[str, Sequence[int]] | None = None,
    at_most: int | None = None,
) -> Newest:
    """The newest checkpoint under `root` that is whole and, where asked, of this configuration and these weights.

    Args:
        root: Directory of the checkpoints; it need not exist.
        config_digests: If given, skip checkpoints whose state has none of these as its `config_digest`.
        shapes: Skip checkpoints whose weights have other names or shapes.
        at_most: Consider no checkpoint after this iteration.
    """
    skipped: list[str] = []
    for path in find_checkpoints(root):
        if at_most is not None and checkpoint_step(path) > at_most:
            continue
        try:
            state = read_whole(path)
            check_state(path, state, config_digests)
            if shapes is not None:
                check_shapes(path, shapes)
        except CheckpointError as error:
            skipped.append(str(error))
        else:
            return Newest(path, state, skipped)
    return Newest(None, {}, skipped)


def read_whole(path: Path) -> dict[str, Any]:
    """The state of the checkpoint at `path` after checking every byte of it. Raises CheckpointError."""
    check_files(path, read_manifest(path))
    return read_state(path)


def check_files(path: Path, files: Mapping[str, FileRecord]) -> None:
    """Compare the digests of `files`, several at a time. Raises CheckpointError at the first that differs."""
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda item: check_digest(path / item[0], item[1]), files.items()))


def read_state(path: Path) -> dict[str, Any]:
    """The state that was saved with the checkpoint at `path`. Raises CheckpointError."""
    try:
        state = json.loads((path / STATE).read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: unreadable {STATE}: {error!r}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: {STATE} is not an object")
    return state


def check_state(path: Path, state: Mapping[str, Any], config_digests: Collection[str]) -> None:
    """Raises CheckpointError when the checkpoint belongs to another configuration."""
    found = state.get("config_digest")
    if config_digests and found not in config_digests:
        expected = " or ".join(sorted(config_digests))
        raise CheckpointError(f"{path}: of another configuration: digest {found}, expected {expected}")


def check_shapes(path: Path, shapes: Mapping[str, Sequence[int]], kind: str = "weights") -> None:
    """Raises CheckpointError when the checkpoint's tensors of `kind` are not exactly those in `shapes`."""
    expected = {name: tuple(shape) for name, shape in shapes.items()}
    found = tensor_shapes(path, kind)
    differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if differing:
        name = differing[0]
        raise CheckpointError(
            f"{path}: of another model: {len(differing)} {kind} tensors differ, {name} is {found.get(name, 'absent')}, "
            f"expected {expected.get(name, 'absent')}"
        )


def tensor_shapes(path: Path, kind: str = "weights") -> dict[str, tuple[int, ...]]:
    """Shapes by Hugging Face name of the checkpoint's `kind`: weights, exp_avg or exp_avg_sq."""
    return {
        name: header.shape
        for shard in shards(read_manifest(path), kind)
        for name, header in read_header(path / shard).items()
    }


def shards(files: Iterable[str], kind: str) -> list[str]:
    """The files that hold the tensors of `kind`, in order."""
    return sorted(name for name in files if name.startswith(f"{kind}-") and name.endswith(".safetensors"))
