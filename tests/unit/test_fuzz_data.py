"""Dataset readers against arbitrary files: problems of plain text, or one error that names what is wrong."""

import datetime
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from drgrpo.data.errors import DataError
from drgrpo.data.sources import LoadedProblems, Source, load_problems

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=20_000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

NAMES = st.sampled_from(["question", "answer", "meta", "a.b", "", "\x00", "\x1b[2J"]) | st.text(max_size=8)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=40)
    | st.sampled_from(["\ud800", "\x00", "\x1b[31m", " ", "\u202e", "2 + 2?", "#### 4"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=12
)
ROWS = st.fixed_dictionaries({}, optional={"question": VALUES, "answer": VALUES, "meta": VALUES})


def load(path: Path, **changes: Any) -> LoadedProblems | None:
    """The problems of the file, None for an error that may be shown as it is; anything else fails."""
    try:
        return load_problems(Source(str(path), split="train", **changes))
    except DataError as error:
        assert "data.train" in str(error)
        assert all(character.isprintable() for character in str(error).replace("\n", "")), str(error)
        return None


def check(loaded: LoadedProblems | None) -> None:
    for problem in loaded.problems if loaded else ():
        assert problem.question.strip() and problem.answer.strip()
        assert len(problem.id) == 16
        (problem.question + problem.answer).encode()


@fuzzed
@given(st.binary(max_size=2000) | st.lists(st.binary(max_size=80), max_size=20).map(b"\n".join))
@example(b"\xef\xbb\xbf" + b'{"question": "1", "answer": "2"}\n')
@example(b'{"question": "1", "answer": "2"}\x00\n')
@example(b'{"question": ' + b"9" * 5000 + b', "answer": "2"}\n')
@example(b'{"a":' * 50_000 + b"1" + b"}" * 50_000)
def test_arbitrary_bytes_in_json_lines_are_an_error_or_problems(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)
    check(load(path))


def test_a_line_of_ten_megabytes_is_a_problem_or_an_error(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"question": "x" * 10_000_000, "answer": "1"}))
    loaded = load(path)
    assert loaded and len(loaded.problems[0].question) == 10_000_000
    path.write_bytes(b"\xff" * 10_000_000)
    assert load(path) is None


@fuzzed
@given(st.lists(ROWS | VALUES, max_size=6), st.sampled_from(["question", "meta.q", "", ".", "question.question"]))
@example([{"question": [[[[[]]]]] * 50, "answer": "1"}], "question")
def test_json_of_any_type_is_an_error_or_problems(tmp_path: Path, rows: list[Any], field: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load(path, question_field=field)
    check(loaded)
    if loaded and field == "question":
        wanted = {row["question"].strip() for row in rows}
        assert {problem.question.strip() for problem in loaded.problems} == wanted


@fuzzed
@given(st.binary(max_size=400), st.data())
def test_a_damaged_parquet_file_is_an_error_or_problems(tmp_path: Path, noise: bytes, data: st.DataObject) -> None:
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"question": ["1 + 1?", "2 + 2?"], "answer": ["2", "4"]}), path)
    content = bytearray(path.read_bytes())
    start = data.draw(st.integers(0, len(content)))
    content[start : start + data.draw(st.integers(0, 60))] = noise
    path.write_bytes(content)
    check(load(path))


ARROW = [
    pa.array([1, None, 3]),
    pa.array([[1], None, [2, 3]]),
    pa.array([{"a": "1"}, None, {"a": "2"}]),
    pa.array([b"\xff\xfe", None, b"text"]),
    pa.array(["a", "b", "a"]).dictionary_encode(),
    pa.array([datetime.timedelta(days=1)] * 3),
    pa.array([2**62, -(2**62), 0], pa.timestamp("us", "UTC")),
    pa.array([2**62, 1, 0], pa.duration("s")),
    pa.array([10**8, -(10**8), 0], pa.int32()).cast(pa.date32()),
    pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int64())),
    pa.array([1.5, float("nan"), None], pa.float16()) if hasattr(pa, "float16") else pa.array([1.5] * 3),
    pa.nulls(3),
    pa.Array.from_buffers(pa.string(), 3, [None, *pa.array([b"\xff", b"\xc3(", b"ok"]).buffers()[1:]]),
    pa.array(["1 + 1?", "2 + 2?", "3 + 3?"]),
    pa.array(["1 + 1?", "2 + 2?", "3 + 3?"], pa.large_string()),
    pa.array(["1 + 1?", "2 + 2?", "3 + 3?"], pa.string_view()),
]


@fuzzed
@given(st.sampled_from(ARROW), st.sampled_from(ARROW), st.sampled_from(["answer", "question", "\x1b[2J", ""]))
def test_parquet_of_any_type_is_an_error_or_problems(
    tmp_path: Path, left: pa.Array, right: pa.Array, name: str
) -> None:
    path = tmp_path / "train.parquet"
    pq.write_table(pa.Table.from_arrays([left, right], ["question", name]), path)
    check(load(path))
