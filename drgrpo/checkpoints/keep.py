"""Which checkpoints stay: the last few and the one that evaluated best."""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

from drgrpo.checkpoints.directory import PRUNED, checkpoint_path, checkpoint_step, find_checkpoints, looks_whole
from drgrpo.durable import replace_json, sync_directory

_BEST = "best.json"


def prune(root: Path, keep_last: int, keep_best: bool = True) -> list[Path]:
    """Delete all but the newest `keep_last` checkpoints and, with `keep_best`, the marked one; returns those deleted.

    One without a manifest does not count as kept, and is deleted only if a whole one is newer: it may be about to
    become whole. Raises ValueError when none is to be kept.
    """
    if keep_last < 1:
        raise ValueError(f"keep_last is {keep_last}: the newest checkpoint is always kept")
    best = _read_best(root).get("step") if keep_best else None
    kept: list[int] = []
    deleted: list[Path] = []
    for path in find_checkpoints(root):
        step = checkpoint_step(path)
        wanted = step not in kept and (len(kept) < keep_last or step == best)
        if looks_whole(path) and wanted:
            kept.append(step)
        elif kept:
            deleted.append(path)
    _delete(root, deleted)
    return deleted


def discard_after(root: Path, step: int) -> list[Path]:
    """Delete every checkpoint taken after iteration `step`, which a rollback to it leaves behind."""
    later = [path for path in find_checkpoints(root) if checkpoint_step(path) > step]
    _delete(root, later)
    return later


def mark_best(root: Path, step: int, metric: str, value: float, *, higher_is_better: bool = True) -> bool:
    """Mark the checkpoint of iteration `step` as the best by `metric`; returns whether it is.

    It is not when it has no whole checkpoint, when `value` is not finite, or when the one marked by the same metric
    is at least as good.
    """
    if not math.isfinite(value) or not looks_whole(checkpoint_path(root, step)):
        return False
    former = _read_best(root)
    if former.get("metric") == metric and best_checkpoint(root) is not None:
        gain = value - former["value"] if higher_is_better else former["value"] - value
        if not gain > 0:
            return False
    replace_json(root / _BEST, {"step": step, "metric": metric, "value": value})
    return True


def best_checkpoint(root: Path) -> tuple[Path, str, float] | None:
    """The marked checkpoint with the metric and value that made it the best; None if there is none any more."""
    best = _read_best(root)
    if not best or not looks_whole(path := checkpoint_path(root, best["step"])):
        return None
    return path, best["metric"], best["value"]


def _read_best(root: Path) -> dict[str, Any]:
    try:
        best = json.loads((root / _BEST).read_bytes())
        return {"step": int(best["step"]), "metric": str(best["metric"]), "value": float(best["value"])}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}


def _delete(root: Path, paths: list[Path]) -> None:
    # Renamed first: half a checkpoint must not be mistaken for a corrupt one.
    for path in paths:
        doomed = path.with_name(f"step-{checkpoint_step(path):06d}{PRUNED}")
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(path, doomed)
        sync_directory(root)
        shutil.rmtree(doomed)
