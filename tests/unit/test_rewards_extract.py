import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drgrpo.rewards.extract import last_hash_line, marked_answer, num_marks


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{18}", "18"),
        (r"\boxed {18}", "18"),
        (r"\boxed{18} then \boxed{5}", "5"),
        (r"\boxed{\frac{1}{2}} end }", r"\frac{1}{2}"),
        (r"\boxed{\boxed{18}}", "18"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{a \} b}", r"a \} b"),
        ("\\boxed{1\n8}", "1\n8"),
        (r"\boxed{}", ""),
        (r"\boxed{18", None),
        (r"\boxed{5} and \boxed{18", None),
        (r"\fbox{18}", None),
        (r"\boxed 18", None),
        ("18", None),
    ],
)
def test_the_last_box_is_read_with_its_braces_balanced(text: str, answer: str | None) -> None:
    assert marked_answer(text) == answer


def test_the_last_hash_line_ends_with_its_line() -> None:
    assert last_hash_line("a\n#### 5\nb #### 18 \nmore") == "18"
    assert last_hash_line("####18</answer>") == "18"
    assert last_hash_line("##### 18") == "18"
    assert last_hash_line("### 18") is None
    assert last_hash_line("18 ####") == ""


def test_the_last_closed_answer_tag_counts() -> None:
    assert marked_answer("<answer>5</answer><answer>\n18\n</answer>") == "18"
    assert marked_answer("<answer>5</answer> <answer>18") == "5"
    assert marked_answer("<answer>18") is None
    assert marked_answer("18</answer>") is None
    assert marked_answer("</answer><answer>") is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{5} #### 18", "18"),
        (r"#### 5" + "\n" + r"so \boxed{18}", "18"),
        (r"#### \boxed{18}", "18"),
        (r"<answer>It is \boxed{18}.</answer>", "18"),
        ("<answer>#### 18</answer>", "18"),
        (r"\boxed{5}</think> <answer>18</answer>", "18"),
        (r"<answer>5</answer> no, \boxed{18}", "18"),
        (r"#### 18 \boxed{5", None),
        ("the answer is 18", None),
    ],
)
def test_the_answer_that_is_marked_last_counts(text: str, answer: str | None) -> None:
    assert marked_answer(text) == answer


def test_a_box_on_a_hash_line_is_one_mark() -> None:
    assert num_marks(r"#### \boxed{18}") == num_marks(r"#### **$\boxed{18}$**") == num_marks("##### 18") == 1
    assert num_marks("#### 5\n" + r"\boxed{18}") == num_marks(r"\boxed{1} \boxed{2}") == num_marks("#### 1 #### 2") == 2
    assert num_marks("18") == 0


@pytest.mark.parametrize(
    "unit", ["\\boxed{", "{", "}", "\\", "####", "#", "<answer>", "</answer>", "\\boxed ", "\n", "####a"]
)
def test_100_000_characters_take_linear_time(unit: str) -> None:
    text = unit * (100_000 // len(unit))
    start = time.perf_counter()
    marked_answer(text)
    marked_answer("\\boxed{" + text)
    num_marks(text)
    assert time.perf_counter() - start < 5.0


EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "200"))
PIECES = [
    r"\boxed",
    "{",
    "}",
    "\\",
    "####",
    "#",
    "<answer>",
    "</answer>",
    "<think>",
    "</think>",
    " ",
    "\n",
    "18",
]


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=60).map("".join)))
def test_any_text_has_an_answer_that_is_a_part_of_it_or_none(text: str) -> None:
    answer = marked_answer(text)
    assert answer is None or answer in text
    assert num_marks(text) >= 0


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.text(alphabet="ab{}\\ ", max_size=30))
def test_the_box_ends_where_a_count_of_braces_says(text: str) -> None:
    depth, end, escaped = 1, None, False
    for offset, char in enumerate(text):
        depth += 0 if escaped else (char == "{") - (char == "}")
        escaped = char == "\\" and not escaped
        if depth == 0:
            end = offset
            break
    assert marked_answer("\\boxed{" + text) == (None if end is None else text[:end].strip())
