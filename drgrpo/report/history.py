"""Metrics of every step in a JSON-lines file of the run directory: they outlive MLflow, Prefect and the process."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from drgrpo.durable import replace_file, sync_directory


def write_history(path: Path, record: Mapping[str, float]) -> None:
    """Add the record of one step (it has the key `step`), synced to disk; the record of a replayed step is replaced.

    A value that is not finite is stored as null, and read as NaN.
    """
    line = _line(record)
    whole = _whole_lines(path)
    last = whole.rstrip(b"\n").rpartition(b"\n")[2]
    if not last or record["step"] > json.loads(last)["step"]:
        _append(path, line, at=len(whole))
    else:
        kept = [kept for kept in read_history(path) if kept["step"] != record["step"]]
        replace_file(path, b"".join(_line(r) for r in sorted([*kept, record], key=lambda r: r["step"])))


def read_history(path: Path) -> list[dict[str, float]]:
    """Records of all steps, oldest first; none for a missing file, and a line torn by a crash is left out."""
    records = [json.loads(line) for line in _whole_lines(path).splitlines()]
    return [{key: math.nan if value is None else value for key, value in record.items()} for record in records]


def _line(record: Mapping[str, float]) -> bytes:
    plain = {key: value if math.isfinite(value) else None for key, value in record.items()}
    return json.dumps(plain, allow_nan=False).encode() + b"\n"


def _whole_lines(path: Path) -> bytes:
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1]


def _append(path: Path, line: bytes, *, at: int) -> None:
    with path.open("r+b" if path.exists() else "wb") as file:
        file.truncate(at)
        file.seek(at)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    if not at:
        sync_directory(path.parent)
