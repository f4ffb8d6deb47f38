"""From the name of a source to problems: a Hub dataset, a local file or directory, or a generator."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drgrpo.data.errors import DataError, suggest
from drgrpo.data.files import Record, raise_faults, read_records
from drgrpo.data.generated import PREFIX, generate_records
from drgrpo.data.hub import download_records
from drgrpo.data.problems import Problem, make_problem

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class Source:
    """Where problems come from.

    Attributes:
        name: Hub id, path of a JSONL or Parquet file or of a directory with one per split, `reasoning_gym:<generator>`.
        split: Split of a Hub dataset, or file stem in a directory.
        subset: Configuration of a Hub dataset; ignored elsewhere.
        question_field: Column of the question; `a.b` is field b of column a.
        answer_field: Column of the reference answer, likewise.
        num_problems: Only the first n; 0 is all, which a generator does not have.
        generator_options: Options of the generator.
        held_out: Whether a generator draws from the held-out seeds.
        config_field: Configuration field that named the source, for error messages.
    """

    name: str
    split: str
    subset: str = ""
    question_field: str = "question"
    answer_field: str = "answer"
    num_problems: int = 0
    generator_options: Mapping[str, int | float | str | bool] = field(default_factory=dict)
    held_out: bool = False
    config_field: str = "data.train"


@dataclass(frozen=True, slots=True)
class LoadedProblems:
    """The problems of a source in its order, and how many were dropped because their question came before."""

    problems: list[Problem]
    num_duplicates: int


@dataclass(frozen=True, slots=True)
class Splits:
    """Training and held-out problems without a common question, and what was dropped to get there."""

    train: list[Problem]
    held_out: list[Problem]
    num_train_duplicates: int
    num_held_out_duplicates: int
    num_train_held_out: int


def load_problems(source: Source) -> LoadedProblems:
    """Read, check and de-duplicate the problems of `source`.

    Raises:
        DataError: Unknown or unreachable source, malformed or empty data, a missing or empty question or answer; the
            text names field, value and remedy, and up to ten faulty rows.
    """
    problems: dict[str, Problem] = {}
    num_rows = 0
    for problem in _parse(source, _records(source)):
        num_rows += 1
        problems.setdefault(problem.question.strip(), problem)
    if not problems:
        raise DataError(
            f"{source.config_field} = {source.name!r}: holds no problems; name a source with at least one row"
        )
    chosen = list(problems.values())[: source.num_problems or None]
    return LoadedProblems(chosen, num_rows - len(problems))


def load_splits(train: Source, held_out: Source) -> Splits:
    """Both sets, with every training problem dropped whose question is in the held-out set.

    Give `held_out` whole, not the subset that is evaluated, so that training never sees the rest of it either.

    Raises:
        DataError: As `load_problems`, or nothing is left to train on.
    """
    kept_out = load_problems(held_out)
    return separate(train, load_problems(train), held_out, kept_out)


def separate(train: Source, trained: LoadedProblems, held_out: Source, kept_out: LoadedProblems) -> Splits:
    """As `load_splits`, of what is loaded already."""
    questions = {problem.question.strip() for problem in kept_out.problems}
    rest = [problem for problem in trained.problems if problem.question.strip() not in questions]
    if not rest:
        raise DataError(
            f"{train.config_field} = {train.name!r}: each of its {len(trained.problems)} questions is held out by "
            f"{held_out.config_field} = {held_out.name!r}; use another split or source for training"
        )
    num_dropped = len(trained.problems) - len(rest)
    return Splits(rest, kept_out.problems, trained.num_duplicates, kept_out.num_duplicates, num_dropped)


def _records(source: Source) -> Iterator[Record]:
    name, path = source.name, Path(source.name).expanduser()
    if name.startswith(PREFIX):
        return generate_records(
            name,
            num_problems=source.num_problems,
            options=source.generator_options,
            held_out=source.held_out,
            field=source.config_field,
        )
    if path.exists():
        return read_records(path, split=source.split, field=source.config_field)
    if name.endswith((".jsonl", ".parquet", ".json")) or name.startswith(("/", ".", "~")):
        raise DataError(
            f"{source.config_field} = {name!r}: no such file or directory (looked in {Path.cwd()}); correct the path"
        )
    if _HUB_ID.fullmatch(name):
        return download_records(name, subset=source.subset, split=source.split, field=source.config_field)
    raise DataError(
        f"{source.config_field} = {name!r}: not a source; give a Hub id (owner/name), a .jsonl or .parquet file, "
        f"a directory, or {PREFIX}<generator>"
    )


def _parse(source: Source, records: Iterator[Record]) -> list[Problem]:
    problems: list[Problem] = []
    faults: list[str] = []
    for where, row in records:
        try:
            question = _text(row, source.question_field)
            answer = _text(row, source.answer_field)
        except ValueError as error:
            faults.append(f"{where}: {error}")
            continue
        columns = {name: row[name] for name in row if name not in (source.question_field, source.answer_field)}
        problems.append(make_problem(question, answer, columns))
    remedy = "question and answer must be non-empty text in the columns of data.question_field and data.answer_field"
    raise_faults(faults, field=source.config_field, source=source.name, remedy=remedy)
    return problems


def _text(row: Mapping[str, Any], path: str) -> str:
    value: Any = row
    for name in [path] if path in row else path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            known = value if isinstance(value, Mapping) else ()
            raise ValueError(f"no column {path!r}{suggest(name, known)}")
        value = value[name]
    if not isinstance(value, str):
        raise ValueError(f"{path!r} is {value!r:.60}, of type {type(value).__name__}, not text")
    if not value.strip():
        raise ValueError(f"{path!r} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{path!r} is not valid Unicode: {error.reason} at character {error.start}") from error
    return value
