"""A table with more columns, as the host writes it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drgrpo.tables import TableRef, read_table, save_table, with_columns


def add_columns(ref: TableRef, path: Path, columns: Mapping[str, Sequence[Any]]) -> TableRef:
    """Write the table of `ref` with `columns` appended, as a new table at `path`."""
    return save_table(path, with_columns(read_table(ref), columns, path=ref.path), source=ref)
