"""Tables are whole or absent, verified on reading, and the same bytes for the same content."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from drgrpo.tables import (
    TableError,
    TableRef,
    as_table,
    find_table,
    read_table,
    save_table,
    with_columns,
    write_table,
)
from tests.growing_table import add_columns

COLUMNS: dict[str, Sequence[Any]] = {
    "group_id": [0, 0, 1],
    "text": ["a", "ü", ""],
    "ids": [[1, 2], [], [3]],
    "logprobs": [[-0.5], None, []],
}


class Crash(BaseException):
    """Stands for the process dying: nothing in the library may swallow it."""


def test_a_table_reads_back_as_it_was_written(tmp_path: Path) -> None:
    ref = write_table(tmp_path / "deep" / "samples.parquet", COLUMNS)
    assert read_table(ref).to_pydict() == COLUMNS
    assert ref.num_rows == 3
    assert ref.sha256 == hashlib.sha256(Path(ref.path).read_bytes()).hexdigest()


def test_a_reference_survives_json(tmp_path: Path) -> None:
    ref = write_table(tmp_path / "t.parquet", COLUMNS)
    assert TableRef(**json.loads(json.dumps(asdict(ref)))) == ref
    assert find_table(tmp_path / "t.parquet") == ref


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    first, second = write_table(tmp_path / "a.parquet", COLUMNS), write_table(tmp_path / "b.parquet", COLUMNS)
    assert Path(first.path).read_bytes() == Path(second.path).read_bytes()
    other = write_table(tmp_path / "c.parquet", COLUMNS | {"text": ["a", "u", ""]})
    assert other.sha256 != first.sha256


def test_reading_a_changed_file_names_the_file_and_both_digests(tmp_path: Path) -> None:
    ref = write_table(tmp_path / "t.parquet", COLUMNS)
    changed = write_table(tmp_path / "t.parquet", {"group_id": [7]})
    with pytest.raises(TableError) as error:
        read_table(ref)
    for part in (ref.path, ref.sha256, changed.sha256):
        assert part in str(error.value)


def test_a_table_without_its_data_manifest_or_last_byte_is_not_found(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    assert find_table(path) is None
    write_table(path, COLUMNS)
    data, manifest = path.read_bytes(), Path(f"{path}.json").read_bytes()
    for cut_data, cut_manifest in (
        (data[:-1], manifest),
        (b"", manifest),
        (data, b""),
        (data, manifest[:20]),
        (data, b"{}"),
        (data, b"3"),
    ):
        path.write_bytes(cut_data)
        Path(f"{path}.json").write_bytes(cut_manifest)
        assert find_table(path) is None
    path.write_bytes(data)
    Path(f"{path}.json").unlink()
    assert find_table(path) is None


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("occurrence", [1, 2])
@pytest.mark.parametrize("existing", [False, True])
def test_a_crash_anywhere_leaves_the_old_table_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, occurrence: int, existing: bool
) -> None:
    path = tmp_path / "t.parquet"
    old = write_table(path, {"group_id": [1]}) if existing else None
    real, calls = getattr(os, call), 0

    def crash(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == occurrence:
            raise Crash
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, crash)
        with pytest.raises(Crash):
            write_table(path, COLUMNS)
    assert find_table(path) in (old, None)
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*"))
    assert find_table(path) is None or read_table(find_table(path)).to_pydict() == {"group_id": [1]}  # type: ignore[arg-type]


def test_columns_are_added_to_a_new_table_and_the_old_one_stays(tmp_path: Path) -> None:
    ref = write_table(tmp_path / "a.parquet", COLUMNS)
    more = add_columns(ref, tmp_path / "b.parquet", {"reward": [1.0, 0.0, 0.5]})
    assert read_table(more).to_pydict() == COLUMNS | {"reward": [1.0, 0.0, 0.5]}
    assert find_table(tmp_path / "a.parquet") == ref


def test_a_table_can_grow_in_place(tmp_path: Path) -> None:
    ref = write_table(tmp_path / "a.parquet", {"group_id": [4, 5]})
    more = add_columns(ref, tmp_path / "a.parquet", {"reward": [1.0, 0.0]})
    assert find_table(tmp_path / "a.parquet") == more != ref


def test_a_table_is_found_by_the_one_that_it_was_made_from(tmp_path: Path) -> None:
    source = write_table(tmp_path / "rollout.parquet", {"a": [1]})
    made = add_columns(source, tmp_path / "reward.parquet", {"reward": [1.0]})
    assert find_table(tmp_path / "reward.parquet", source=source) == made
    other = write_table(tmp_path / "rollout.parquet", {"a": [2]})
    assert find_table(tmp_path / "reward.parquet", source=other) is None
    assert find_table(tmp_path / "reward.parquet") == made
    assert find_table(tmp_path / "rollout.parquet", source=source) is None  # made from none
    write_table(tmp_path / "rollout.parquet", {"a": [1]})  # the same once more
    assert find_table(tmp_path / "reward.parquet", source=source) == made


def test_of_the_columns_asked_for_those_there_are_are_read(tmp_path: Path) -> None:
    ref = write_table(tmp_path / "t.parquet", COLUMNS)
    assert read_table(ref, ("ids", "absent", "group_id")).to_pydict() == {k: COLUMNS[k] for k in ("group_id", "ids")}


def test_bad_columns_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="equal length"):
        write_table(tmp_path / "t.parquet", {"a": [1], "b": [1, 2]})
    with pytest.raises(TableError, match="one or more columns"):
        write_table(tmp_path / "t.parquet", {})
    ref = write_table(tmp_path / "a.parquet", {"a": [1]})
    with pytest.raises(TableError, match="exists already"):
        add_columns(ref, tmp_path / "t.parquet", {"a": [2]})
    with pytest.raises(TableError, match="2 values for 1 rows"):
        add_columns(ref, tmp_path / "t.parquet", {"b": [1, 2]})
    assert not (tmp_path / "t.parquet").exists()


def test_a_table_made_in_memory_has_the_bytes_of_one_made_from_the_file(tmp_path: Path) -> None:
    more = {"reward": [0.0, 1.0, 0.5], "parts": [[1], [], [2, 3]], "status": ["ok", "ok", ""]}
    first = write_table(tmp_path / "a.parquet", COLUMNS)
    from_file = add_columns(first, tmp_path / "b.parquet", more)
    in_memory = with_columns(as_table(COLUMNS), more, path="")
    kept = save_table(tmp_path / "c.parquet", in_memory, source=first)
    assert kept.sha256 == from_file.sha256
    assert find_table(tmp_path / "c.parquet", source=first) == kept
