import json
import os
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drgrpo.rewards.bare_number import number
from drgrpo.rewards.form import format_reward
from drgrpo.rewards.gsm8k import gsm8k
from drgrpo.rewards.mathematics import math_reward
from drgrpo.rewards.numbers import parse_number

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "200"))
GSM8K = Path(__file__).parents[3] / "shared" / "gsm8k"

STRICT = [
    (r"\boxed{18}", 1),
    (r"\boxed{18.00}", 1),
    (r"\boxed{\$18}", 1),
    (r"\boxed{x=18}", 1),
    (r"\boxed{18 apples}", 1),
    (r"\boxed{18 dollars}", 1),
    (r"\boxed{18 \text{ dollars}}", 1),
    (r"\boxed{9 \times 2 = 18}", 1),
    (r"\boxed{9 * 2 = 18}", 1),
    (r"\boxed {18}", 1),
    (r"\boxed{18} then \boxed{5}", 0),
    (r"\boxed{5} then \boxed{18}", 1),
    (r"\fbox{18}", 0),
    (r"\boxed{18", 0),
    (r"\boxed{}", 0),
    (r"\boxed{18 or 20}", 0),
    (r"\boxed{17, 18, 19}", 0),
    (r"\boxed{18 a}", 0),
    (r"\boxed{18x}", 0),
    (r"\boxed{-18}", 0),
    (r"\boxed{18\%}", 1),
    (r"\boxed{0.18}", 0),
    (r"\boxed{36/2}", 1),
    (r"\boxed{18 million}", 0),
    ("#### 18", 1),
    ("#### $18.00 per day", 1),
    ("#### 18\nThank you! 5", 1),
    ("####", 0),
    ("The answer is 18", 0),
    ("18", 0),
    ("", 0),
    ("why</think> <answer>18</answer>", 1),
    ("why</think>\n<answer> 18 </answer>", 1),
    ("why</think><answer>The answer is 18.</answer>", 1),
    (r"why</think> <answer>\boxed{18}</answer>", 1),
    ("why</think> <answer>18", 0),
]


@pytest.mark.parametrize(("completion", "reward"), STRICT)
def test_gsm8k_strict_reads_the_marked_answer(completion: str, reward: int) -> None:
    assert gsm8k(completion, "She makes 9 * 2 = $<<9*2=18>>18.\n#### 18") == reward


@pytest.mark.parametrize(
    ("completion", "answer", "reward"),
    [
        (r"\boxed{30000}", "#### 30,000", 1),
        (r"\boxed{30,000}", "30000", 1),
        (r"\boxed{025}", "25", 1),
        (r"\boxed{2/4}", r"\frac{1}{2}", 1),
        (r"\boxed{3 a}", "3", 0),
        (r"\boxed{50\%}", "#### 50", 1),
        (r"\boxed{50\%}", "#### 0.5", 0),
        (r"\boxed{-3}", "#### -3", 1),
    ],
)
def test_gsm8k_compares_values_not_spelling(completion: str, answer: str, reward: int) -> None:
    assert gsm8k(completion, answer) == reward


def test_gsm8k_lenient_reads_the_last_number_of_the_text() -> None:
    assert gsm8k("She has 18 in all", "#### 18", answer_mode="lenient") == 1
    assert gsm8k("18 in 3 days", "#### 18", answer_mode="lenient") == 0
    assert gsm8k(r"So \boxed{18}.", "#### 18", answer_mode="lenient") == 1
    assert gsm8k("nothing", "#### 18", answer_mode="lenient") == 0


def test_a_reference_without_a_number_is_an_error_not_a_0() -> None:
    with pytest.raises(ValueError, match="no number"):
        gsm8k(r"\boxed{18}", "#### eighteen")
    with pytest.raises(ValueError, match="no number"):
        number("18", "eighteen")


@pytest.mark.skipif(not GSM8K.is_dir(), reason="the GSM8K files are not here")
@pytest.mark.parametrize(("split", "count"), [("test", 1319), ("train", 7473)])
def test_every_gsm8k_solution_scores_1_against_itself_and_no_other_answer_does(split: str, count: int) -> None:
    golds = [json.loads(line)["answer"] for line in (GSM8K / f"{split}.jsonl").read_text().splitlines()]
    assert len(golds) == count
    for gold in golds:
        value = int(gold.rsplit("####", 1)[1].replace(",", ""))
        assert gsm8k(gold, gold) == gsm8k(rf"so \boxed{{{value:,}}}.", gold) == 1
        assert gsm8k(rf"\boxed{{{value + 1}}}", gold) == gsm8k(f"#### {value - 1}", gold) == 0


@pytest.mark.parametrize(
    ("completion", "strict", "lenient"),
    [
        ("7", 1, 1),
        (" 7.\n", 1, 1),
        ("It is 7.", 1, 1),
        ("3 + 4 = 7", 1, 1),
        ("3 plus 4 makes 7", 0, 1),
        ("7 is 3 + 4", 0, 0),
        (r"3 and 4: \boxed{7}", 1, 1),
        (r"7 \boxed{8}", 0, 0),
        ("seven", 0, 0),
        ("", 0, 0),
    ],
)
def test_number_reads_a_bare_number(completion: str, strict: int, lenient: int) -> None:
    assert number(completion, "7") == strict
    assert number(completion, "7", answer_mode="lenient") == lenient


@pytest.mark.parametrize(
    ("completion", "strict", "lenient"),
    [
        (r"so \boxed{wrong}", 1, 1),
        ("#### 5", 1, 1),
        (r"#### \boxed{5}", 1, 1),
        (r"\boxed{5} \boxed{5}", 0, 1),
        (r"\boxed{5}" + "\n#### 5", 0, 1),
        (r"\boxed{}", 0, 0),
        (r"\boxed{ }", 0, 0),
        (r"\boxed{5", 0, 0),
        ("####", 0, 0),
        ("5", 0, 0),
        ("why </think> <answer>5</answer>", 1, 1),
        ("<think>why</think>\n<answer>5</answer>", 1, 1),
        (r"why </think> <answer>\boxed{5}</answer>", 1, 1),
        ("<answer>5</answer>", 0, 1),
        ("why </think> so <answer>5</answer>", 0, 1),
        ("</think> <answer>5</answer> <answer>6</answer>", 0, 1),
        ("</think> <answer></answer>", 0, 0),
        ("</think> <answer>5", 0, 0),
        ("<answer>5</answer> </think>", 0, 1),
    ],
)
def test_format_rewards_one_marked_answer_whatever_it_says(completion: str, strict: int, lenient: int) -> None:
    assert format_reward(completion, "18") == strict
    assert format_reward(completion, "18", answer_mode="lenient") == lenient


@pytest.mark.parametrize(
    ("completion", "answer", "reward"),
    [
        (r"\boxed{\frac{1}{2}}", r"\boxed{0.5}", 1),
        (r"\boxed{1+x^2}", "x^2+1", 1),
        (r"\boxed{(3, 5)}", "(3,5)", 1),
        (r"\boxed{(5, 3)}", "(3,5)", 0),
        (r"\boxed{18 dollars}", "#### 18", 1),
        (r"\boxed{18, 20}", "18", 0),
        (r"\boxed{3 a}", "3", 0),
        (r"\boxed{x=3}", "3", 1),
        (r"\boxed{Evelyn}", r"\text{Evelyn}", 1),
        (r"\boxed{2.23}", "2.232", 0),
        (r"\boxed{}", "18", 0),
        (r"\boxed{18", "18", 0),
        ("18", "18", 0),
    ],
)
def test_math_strict_compares_the_marked_answer_symbolically(completion: str, answer: str, reward: int) -> None:
    assert math_reward(completion, answer) == reward


def test_math_lenient_searches_the_text() -> None:
    assert math_reward("The answer is $\\frac{2}{4}$.", r"\frac{1}{2}", answer_mode="lenient") == 1
    assert math_reward("I do not know.", r"\frac{1}{2}", answer_mode="lenient") == 0
    with pytest.raises(ValueError, match="cannot parse"):
        math_reward(r"\boxed{18}", "")


BOX_TEXT = st.text(alphabet="0123456789.,- %$=x+*(", max_size=20)


@settings(max_examples=EXAMPLES, deadline=None)
@given(BOX_TEXT, st.integers(0, 99))
def test_a_box_scores_1_only_if_the_reference_is_written_in_it(text: str, gold: int) -> None:
    reward = gsm8k(f"\\boxed{{{text}}}", str(gold))
    written = "".join(char if char in "0123456789." else "" if char == "," else " " for char in text).split()
    assert reward == 0.0 or gold in {Fraction(run.strip(".")) for run in written if run.strip(".").isdecimal()} | {
        Fraction(run.rstrip(".")) for run in written if run.rstrip(".").count(".") == 1
    }


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.text(max_size=200))
def test_no_completion_breaks_a_reward(completion: str) -> None:
    for function in (gsm8k, number, format_reward):
        for mode in ("strict", "lenient"):
            assert function(completion, "18", answer_mode=mode) in (0.0, 1.0)
    assert parse_number(completion) is None or any(map(str.isnumeric, completion))
