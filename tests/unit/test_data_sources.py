"""Sources: each form reads the same problems; each fault is named with field, value, place and remedy."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drgrpo.data.errors import DataError
from drgrpo.data.sources import Source, load_problems, load_splits

ROWS = [{"question": f"What is {i} + {i}?", "answer": f"#### {2 * i}"} for i in range(5)]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def source(name: Path | str, **changes: Any) -> Source:
    return Source(str(name), split="train", **changes)


def message(bad: Source) -> str:
    with pytest.raises(DataError) as error:
        load_problems(bad)
    return str(error.value)


def test_a_jsonl_file_a_parquet_file_and_a_directory_give_the_same_problems(tmp_path: Path) -> None:
    jsonl = write_jsonl(tmp_path / "lines" / "train.jsonl", ROWS)
    parquet = tmp_path / "table.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), parquet)
    loaded = [load_problems(source(name)).problems for name in (jsonl, parquet, jsonl.parent)]
    assert loaded[0] == loaded[1] == loaded[2]
    assert [(problem.question, problem.answer) for problem in loaded[0]] == [(r["question"], r["answer"]) for r in ROWS]


def test_columns_are_chosen_by_name_and_reach_into_objects(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [{"q": "1", "meta": {"gold": "2"}, "a.b": "3"}])
    (problem,) = load_problems(source(file, question_field="a.b", answer_field="meta.gold")).problems
    assert (problem.question, problem.answer) == ("3", "2")


def test_repeated_questions_are_dropped_and_counted(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [*ROWS, ROWS[0], {"question": " What is 1 + 1? ", "answer": "other"}])
    loaded = load_problems(source(file))
    assert loaded.num_duplicates == 2
    assert [problem.answer for problem in loaded.problems] == [row["answer"] for row in ROWS]


def test_only_the_first_n_problems_are_used(tmp_path: Path) -> None:
    loaded = load_problems(source(write_jsonl(tmp_path / "a.jsonl", [ROWS[0], *ROWS]), num_problems=2))
    assert [problem.answer for problem in loaded.problems] == ["#### 0", "#### 2"]
    assert loaded.num_duplicates == 1


def test_malformed_lines_are_all_counted_and_the_first_ten_listed(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [ROWS[0], "{broken", "[1]", ROWS[1], *["nope"] * 10, "[" * 100_000])
    text = message(source(file))
    assert f"data.train = {str(file)!r}: 13 malformed" in text
    assert f"{file}:2: " in text and f"{file}:3: a JSON list, not an object" in text and f"{file}:5: " in text
    assert text.count(f"{file}:") == 10 and "and 3 more" in text


def test_an_empty_line_is_malformed_and_named(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [ROWS[0], "", ROWS[1], "  "])
    text = message(source(file))
    assert f"{file}:2: an empty line" in text and f"{file}:4: an empty line" in text and "2 malformed" in text


def test_the_other_columns_of_a_row_stay_with_its_problem(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [{"question": "q", "answer": "1", "level": 3, "tags": ["x"]}])
    (problem,) = load_problems(source(file)).problems
    assert problem.columns == {"level": 3, "tags": ["x"]}


def test_a_line_that_is_not_utf8_is_malformed(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(json.dumps(ROWS[0]).encode() + b'\n{"question": "\xff", "answer": "1"}\n')
    assert f"{file}:2: " in message(source(file))


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"question": "q", "answers": "1"}, "no column 'answer' (did you mean 'answers'?)"),
        ({"text": "q", "zzzzzz": "1"}, "no column 'question' (there is 'text', 'zzzzzz')"),
        ({"question": "q", "answer": 7}, "'answer' is 7, of type int, not text"),
        ({"question": None, "answer": "1"}, "'question' is None, of type NoneType, not text"),
        ({"question": " \n", "answer": "1"}, "'question' is empty"),
        ({"question": "q", "answer": "\ud800"}, "'answer' is not valid Unicode"),
    ],
)
def test_a_bad_row_is_named_with_file_line_and_column(tmp_path: Path, row: dict[str, Any], fault: str) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [ROWS[0], row])
    text = message(source(file))
    assert f"{file}:2: {fault}" in text
    assert "data.question_field and data.answer_field" in text


def test_a_bad_parquet_row_is_named_by_index(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([*ROWS, {"question": "q", "answer": None}]), file)
    assert f"{file} row 5: 'answer' is None" in message(source(file))
    file.write_text("not parquet")
    assert "not a Parquet file" in message(source(file))


def test_missing_sources_say_what_to_do(tmp_path: Path) -> None:
    assert "no such file or directory" in message(source(tmp_path / "gone"))
    assert "no such file or directory" in message(source("data/gone.jsonl", config_field="data.eval"))
    write_jsonl(tmp_path / "trian.jsonl", ROWS)
    text = message(source(tmp_path))
    assert "no train.jsonl or train.parquet" in text and "did you mean 'trian'?" in text and "data.train_split" in text
    assert "holds no problems" in message(source(write_jsonl(tmp_path / "empty.jsonl", [])))
    assert "neither .jsonl nor .parquet" in message(source(write_jsonl(tmp_path / "a.csv", ["a,b"])))
    assert "not a source" in message(source("what is this"))


def test_two_files_for_one_split_are_ambiguous(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "train.parquet")
    assert "name one as the source" in message(source(tmp_path))


def test_an_unreachable_hub_says_what_to_do_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    text = message(source("nobody/no-such-data", subset="main"))
    for part in ("data.train = 'nobody/no-such-data'", "Name or service not known", "HF_TOKEN", "train.jsonl"):
        assert part in text


def test_a_hub_dataset_is_read_with_its_subset_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    asked: list[Any] = []

    def load(*args: str, **options: str) -> list[dict[str, str]]:
        asked.append((args, options))
        return ROWS

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(load_problems(source("openai/gsm8k", subset="main")).problems) == 5
    assert asked == [(("openai/gsm8k", "main"), {"split": "train"})]


def generator(name: str = "chain_sum", **changes: Any) -> Source:
    options = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
    changes = {"num_problems": 50, "generator_options": options} | changes
    return source(f"reasoning_gym:{name}", **changes)


def test_a_generator_gives_the_same_problems_each_time_and_others_when_held_out() -> None:
    train, again = load_problems(generator()), load_problems(generator())
    assert train == again
    assert len(train.problems) + train.num_duplicates == 50
    held_out = load_problems(generator(held_out=True)).problems
    assert len({problem.id for problem in held_out} & {problem.id for problem in train.problems}) < 5


def test_a_longer_generated_set_begins_with_the_shorter_one() -> None:
    short, long = load_problems(generator(num_problems=10)).problems, load_problems(generator()).problems
    assert long[: len(short)] == short


def test_a_generators_metadata_can_be_the_question() -> None:
    problems = load_problems(generator(question_field="metadata.expression")).problems
    assert all(eval(problem.question) == int(problem.answer) for problem in problems)


def test_training_never_contains_a_held_out_question() -> None:
    tiny = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    splits = load_splits(
        generator(num_problems=300, generator_options=tiny),
        generator(num_problems=60, generator_options=tiny, held_out=True),
    )
    assert not {p.question for p in splits.train} & {p.question for p in splits.held_out}
    assert splits.num_train_held_out > 0
    assert len(splits.train) + splits.num_train_duplicates + splits.num_train_held_out == 300
    assert len(splits.held_out) + splits.num_held_out_duplicates == 60


def test_a_question_in_both_files_is_kept_for_evaluation_only(tmp_path: Path) -> None:
    train = source(write_jsonl(tmp_path / "train.jsonl", ROWS))
    held_out = source(write_jsonl(tmp_path / "test.jsonl", [ROWS[3], {"question": "new", "answer": "1"}]))
    splits = load_splits(train, held_out)
    assert [problem.answer for problem in splits.train] == ["#### 0", "#### 2", "#### 4", "#### 8"]
    assert (len(splits.held_out), splits.num_train_held_out) == (2, 1)
    with pytest.raises(DataError, match="each of its 5 questions is held out"):
        load_splits(train, source(tmp_path / "train.jsonl", config_field="data.eval"))


def test_wrong_generators_and_options_are_refused_by_name() -> None:
    assert "no generator 'chain_sums' (did you mean 'chain_sum'?)" in message(generator("chain_sums"))
    text = message(generator(generator_options={"min_trms": 2}))
    assert "data.generator_options.min_trms = 2" in text and "did you mean 'min_terms'?" in text
    assert "has no such option" in message(generator(generator_options={"seed": 1}))
    assert "max_terms must be >= min_terms" in message(generator(generator_options={"min_terms": 5, "max_terms": 2}))
    text = message(generator(num_problems=0))
    assert "data.num_train_problems" in text and "evaluation.num_problems" in text


def test_reading_problems_imports_no_torch(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "train.jsonl", ROWS)
    program = (
        "import sys, drgrpo.data.prompts, drgrpo.tables, drgrpo.packing, drgrpo.models\n"
        "from drgrpo.data.sources import Source, load_problems\n"
        f"load_problems(Source({str(file)!r}, split='train'))\n"
        "load_problems(Source('reasoning_gym:chain_sum', split='train', num_problems=3))\n"
        "print(sorted({'torch', 'transformers', 'vllm', 'mlflow', 'prefect', 'ray'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
