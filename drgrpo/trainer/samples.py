"""What the trainer reads of a sample table: from the disk, or as the host hands it over before it is there."""

import numpy as np
import pyarrow as pa

from drgrpo.tables import TableRef, list_values, read_table
from drgrpo.trainer.batch import Sample

_LISTS = ("prompt_ids", "completion_ids", "sampler_logprobs")
_COLUMNS = ("group_id", "advantage", *_LISTS)


def select_samples(table: pa.Table) -> pa.Table:
    """The columns of a table with advantages that the trainer reads."""
    return table.select([name for name in table.column_names if name in _COLUMNS])


def read_samples(table: TableRef | pa.Table) -> list[Sample]:
    """The samples of a table with advantages, in its order; their lists are arrays, which are packed without a loop.

    Raises what `read_table` raises for a reference.
    """
    columns = read_table(table, _COLUMNS) if isinstance(table, TableRef) else table
    lists = {name: list_values(columns[name]) for name in _LISTS if name in columns.column_names}
    values = zip(
        columns["group_id"].to_pylist(),
        lists["prompt_ids"],
        lists["completion_ids"],
        columns["advantage"].to_pylist(),
        lists.get("sampler_logprobs") or [np.empty(0)] * columns.num_rows,
        strict=True,
    )
    return [Sample(*sample) for sample in values]
