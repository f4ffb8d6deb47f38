"""The problems of the arithmetic baseline: solutions in steps, of reasoning-gym's own answers."""

import json
from pathlib import Path

from benchmarks.arithmetic import solution, write_split
from drgrpo.rewards.gsm8k import gsm8k


def test_a_solution_has_a_line_for_each_partial_sum_and_the_last_as_the_answer() -> None:
    assert solution("4 + 3 - 12") == "4 + 3 = 7\n7 - 12 = -5\n#### -5"
    assert solution("10 - 20 - 30 + 5") == "10 - 20 = -10\n-10 - 30 = -40\n-40 + 5 = -35\n#### -35"


def test_splits_are_written_alike_each_time_and_share_no_problem(tmp_path: Path) -> None:
    options = {"min_terms": 3, "max_terms": 5, "min_digits": 3, "max_digits": 4}
    train, test, further = range(50), range(40), range(40, 50)
    for name, problems in (("train", train), ("test", test), ("further", further), ("again", train)):
        write_split(tmp_path / name, problems=problems, options=options, held_out=problems is not train)
    assert (tmp_path / "train").read_bytes() == (tmp_path / "again").read_bytes()
    texts = [(tmp_path / name).read_text() for name in ("train", "test", "further")]
    rows = [json.loads(line) for text in texts for line in text.splitlines()]
    assert len({row["question"] for row in rows}) == 100
    for row in rows:
        expression = row["question"].removeprefix("What is ").removesuffix("?")
        assert row["answer"].splitlines()[-1] == f"#### {eval(expression)}"  # digits and signs of our own
        assert row["answer"].count("=") == expression.count(" ") // 2


def test_the_reward_of_gsm8k_reads_the_answer() -> None:
    completion = "4 + 3 = 7\n7 - 12 = -5\n#### -5"
    assert gsm8k(completion, solution("4 + 3 - 12")) == 1.0
    assert gsm8k(completion, solution("4 + 3 - 11")) == 0.0
