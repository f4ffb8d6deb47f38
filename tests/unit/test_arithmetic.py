"""The problems of the arithmetic baseline: solutions in steps, of reasoning-gym's own answers."""

import json
from pathlib import Path

import pytest

from benchmarks.arithmetic import solution, write_splits
from drgrpo.rewards.gsm8k import gsm8k


def test_a_solution_has_a_line_for_each_partial_sum_and_the_last_as_the_answer() -> None:
    assert solution("4 + 3 - 12") == "4 + 3 = 7\n7 - 12 = -5\n#### -5"
    assert solution("10 - 20 - 30 + 5") == "10 - 20 = -10\n-10 - 30 = -40\n-40 + 5 = -35\n#### -35"


def test_splits_are_written_alike_each_time_and_share_no_problem(tmp_path: Path) -> None:
    # Few enough that the generator repeats itself: nine of its first 40 and 30 held-out ones stand there already.
    options = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    names = {"train.jsonl": 40, "test.jsonl": 20, "validation/test.jsonl": 10}
    for folder in (tmp_path / "once", tmp_path / "again"):
        write_splits(folder, train=40, test=20, validation=10, options=options)
    rows = []
    for name, size in names.items():
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
        lines = (tmp_path / "once" / name).read_text().splitlines()
        assert len(lines) == size
        rows += [json.loads(line) for line in lines]
    assert len({row["question"] for row in rows}) == 70
    for row in rows:
        expression = row["question"].removeprefix("What is ").removesuffix("?")
        assert row["answer"].splitlines()[-1] == f"#### {eval(expression)}"  # digits and signs of our own
        assert row["answer"].count("=") == expression.count(" ") // 2


def test_the_reward_of_gsm8k_reads_the_answer() -> None:
    completion = "4 + 3 = 7\n7 - 12 = -5\n#### -5"
    assert gsm8k(completion, solution("4 + 3 - 12")) == 1.0
    assert gsm8k(completion, solution("4 + 3 - 11")) == 0.0


def test_too_few_different_problems_are_an_error(tmp_path: Path) -> None:
    options = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    with pytest.raises(ValueError, match=r"train\.jsonl: \d+ different problems of 900; raise --terms or --digits"):
        write_splits(tmp_path, train=900, test=1, validation=1, options=options)
