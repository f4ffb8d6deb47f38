"""Records from local files: JSON lines, Parquet, or a directory that holds one such file per split."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from drgrpo.data.errors import DataError, suggest

Record = tuple[str, Mapping[str, Any]]
"""Where a row stands, for error messages, and its columns."""

NUM_FAULTS_SHOWN = 10


def read_records(path: Path, *, split: str, field: str) -> Iterator[Record]:
    """The rows of a JSONL or Parquet file, or of `<split>.jsonl` / `<split>.parquet` in a directory.

    Raises:
        DataError: No such file, not JSON lines or Parquet; up to ten malformed lines are listed by number.
    """
    file = _split_file(path, split, field) if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"{field} = {str(file)!r}: not a regular file; name a .jsonl or .parquet file")
    if file.suffix == ".jsonl":
        return _read_jsonl(file, field)
    if file.suffix == ".parquet":
        return _read_parquet(file, field)
    raise DataError(
        f"{field} = {str(path)!r}: neither .jsonl nor .parquet; convert it to JSON lines, one object a line"
    )


def raise_faults(faults: list[str], *, field: str, source: str, remedy: str) -> None:
    """Raise one error that lists the first ten of `faults`, if there are any."""
    if faults:
        shown = "".join(f"\n  {fault}" for fault in faults[:NUM_FAULTS_SHOWN])
        more = f"\n  and {len(faults) - NUM_FAULTS_SHOWN} more" if len(faults) > NUM_FAULTS_SHOWN else ""
        raise DataError(f"{field} = {source!r}: {len(faults)} malformed; {remedy}:{shown}{more}")


def _split_file(directory: Path, split: str, field: str) -> Path:
    if Path(split).name != split:
        raise DataError(f"{field}_split = {split!r}: not the stem of a file in {str(directory)!r}; name one without /")
    found = [path for suffix in (".jsonl", ".parquet") if (path := directory / f"{split}{suffix}").is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"{field} = {str(directory)!r}: holds {found[0].name} and {found[1].name}; name one as the source"
        )
    stems = {path.stem for path in directory.iterdir() if path.suffix in (".jsonl", ".parquet")}
    raise DataError(
        f"{field} = {str(directory)!r}: no {split}.jsonl or {split}.parquet in it{suggest(split, stems)}; "
        f"set {field}_split to the stem of a file there"
    )


def _read_jsonl(file: Path, field: str) -> Iterator[Record]:
    records: list[Record] = []
    faults: list[str] = []
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        where = f"{file}:{number}"
        if not line.strip():
            faults.append(f"{where}: an empty line")
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            faults.append(f"{where}: {error}")
            continue
        if isinstance(row, dict):
            records.append((where, row))
        else:
            faults.append(f"{where}: a JSON {type(row).__name__}, not an object")
    raise_faults(faults, field=field, source=str(file), remedy="each line must be one JSON object")
    return iter(records)


def _read_parquet(file: Path, field: str) -> Iterator[Record]:
    try:
        rows = pq.read_table(file, partitioning=None).to_pylist()
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        # As repr: the text of a damaged file may hold escape sequences.
        reason = f"{str(error)[:200]!r}"
        raise DataError(f"{field} = {str(file)!r}: not a Parquet file ({reason}); write it again") from error
    return ((f"{file} row {index}", row) for index, row in enumerate(rows))
