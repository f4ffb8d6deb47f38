"""Tables on disk: Parquet files with a digest beside them, which stages pass to one another by reference."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from drgrpo.durable import sync_directory


class TableError(ValueError):
    """A table that cannot be written as asked, or whose bytes on disk are not the ones its reference names."""


@dataclass(frozen=True, slots=True)
class TableRef:
    """A table by reference: plain strings and integers, so that `dataclasses.asdict` is JSON-able.

    Attributes:
        path: Absolute path of the Parquet file.
        sha256: Hex digest of the file's bytes.
        num_rows: Rows of the table.
    """

    path: str
    sha256: str
    num_rows: int


def write_table(path: Path, columns: Mapping[str, Sequence[Any]], *, durable: bool = True) -> TableRef:
    """Write `columns` (name to equally long sequences) as one table, atomically.

    Equal columns in equal order give equal bytes. A crash at any point leaves either the whole table or one that
    `find_table` does not accept, because the manifest `<path>.json` is written after the data and holds their digest.
    Unless `durable`, a power cut may also leave such a one later: for a stage whose next one writes it all again.

    Raises:
        TableError: Columns of different lengths, or none at all.
    """
    lengths = {name: len(values) for name, values in columns.items()}
    if not lengths or len(set(lengths.values())) > 1:
        raise TableError(f"{path}: a table needs one or more columns of equal length, got {lengths}")
    return save_table(path, as_table(columns), durable=durable)


def as_table(columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    """Equally long sequences by name as a table in memory."""
    return pa.table({name: _array(values) for name, values in columns.items()})


def save_table(path: Path, table: pa.Table, *, source: TableRef | None = None, durable: bool = True) -> TableRef:
    """As `write_table`, a table in memory; the manifest holds the digest of `source`, from which it was made."""
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    # The step waits for it, and compressing takes about as long as all else; what a later stage writes again is small.
    compression = "zstd" if durable else "none"
    # Token ids hardly repeat; a dictionary of them takes as long as the rest of the file.
    repeating = [field.name for field in table.schema if not pa.types.is_list(field.type)]
    options = {"compression": compression, "use_dictionary": repeating}
    digest = _replace(path, lambda file: pq.write_table(table, file, **options), durable=durable)
    origin = {"source": source.sha256} if source else {}
    manifest = json.dumps({"sha256": digest, "num_rows": table.num_rows, **origin}, sort_keys=True) + "\n"
    _replace(_manifest(path), lambda file: file.write(manifest.encode()), durable=durable)
    return TableRef(str(path), digest, table.num_rows)


def read_table(ref: TableRef, columns: Collection[str] | None = None) -> pa.Table:
    """Read the table that `ref` names, after checking its bytes; of `columns`, if given, those that it has.

    Raises:
        FileNotFoundError: The file is gone.
        TableError: The file's digest is not the one in `ref`.
    """
    digest = _digest(Path(ref.path))
    if digest != ref.sha256:
        raise TableError(
            f"{ref.path}: the table was changed after it was written: sha256 is {digest}, expected {ref.sha256}; "
            "delete the file to have its stage run again"
        )
    names = None if columns is None else [name for name in pq.read_schema(ref.path).names if name in columns]
    return pq.read_table(ref.path, columns=names, partitioning=None)


def find_table(path: Path, *, source: TableRef | None = None) -> TableRef | None:
    """The reference of the table at `path`, or None where it is absent, partial or not what its manifest says.

    With `source`, also None unless `save_table` made it from that very table.
    """
    ref = named_table(path, source=source)
    try:
        return ref if ref and _digest(path) == ref.sha256 else None
    except FileNotFoundError:
        return None


def named_table(path: Path, *, source: TableRef | None = None) -> TableRef | None:
    """As `find_table`, by what the manifest says alone; the table itself is not read."""
    try:
        manifest = json.loads(_manifest(path).read_text())
        if source and manifest["source"] != source.sha256:
            return None
        return TableRef(str(path.absolute()), manifest["sha256"], manifest["num_rows"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def with_columns(table: pa.Table, columns: Mapping[str, Sequence[Any]], *, path: str) -> pa.Table:
    """`table`, which lies at `path`, with `columns` (each of `table.num_rows` values) appended.

    Raises TableError for a column that exists already or has another length.
    """
    for name, values in columns.items():
        if name in table.column_names:
            raise TableError(f"{path}: column {name!r} exists already")
        if len(values) != table.num_rows:
            raise TableError(f"{path}: column {name!r} has {len(values)} values for {table.num_rows} rows")
        table = table.append_column(name, _array(values))
    return table


def list_values(column: pa.ChunkedArray) -> list[np.ndarray]:
    """The values of each row of a column of lists, those of a null as none; much faster than as lists."""
    rows = column.combine_chunks()
    values, offsets = rows.values.to_numpy(zero_copy_only=False), rows.offsets.to_numpy()
    return [values[start:end] for start, end in pairwise(offsets)]


def _array(values: Sequence[Any]) -> pa.Array:
    """`values` in memory just as they come back from a file, where the values of a list are named so."""
    if len(values) and isinstance(values[0], np.ndarray):
        offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
        flat = pa.array(np.concatenate(values))
        return pa.ListArray.from_arrays(offsets, flat, type=_list_of(flat.type))
    array = pa.array(values)
    is_list = pa.types.is_list(array.type)
    return array.cast(_list_of(array.type.value_type)) if is_list else array


def _list_of(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", kind))


def _replace(path: Path, write: Callable[[IO[bytes]], object], *, durable: bool) -> str:
    """Write a file beside `path` and rename it into place, forced to disk if `durable`; returns its digest."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        digest = _digest(Path(name))
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    if durable:
        sync_directory(path.parent)
    return digest


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest(path: Path) -> Path:
    return path.with_name(path.name + ".json")
