"""Reward functions against arbitrary completions: always 0 or 1, in time, and never a wrong 1."""

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from drgrpo.rewards.bare_number import number
from drgrpo.rewards.extract import marked_answer
from drgrpo.rewards.form import format_reward
from drgrpo.rewards.grade import GradeItem
from drgrpo.rewards.gsm8k import gsm8k
from drgrpo.rewards.numbers import parse_number
from drgrpo.rewards.pool import GraderPool

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=20_000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much, HealthCheck.too_slow],
)

in_a_pool = settings(fuzzed, deadline=60_000)

PIECES = [
    *(
        "\\boxed{",
        "}",
        "{",
        "####",
        "\n",
        "<answer>",
        "</answer>",
        "<think>",
        "</think>",
        "\\frac",
        "\\sqrt",
        "\\text{",
    ),
    *(
        "$",
        "$$",
        "\\(",
        "\\)",
        "\\[",
        "\\]",
        "\\begin{matrix}",
        "&",
        "\\\\",
        "^",
        "_",
        "=",
        "+",
        "-",
        "*",
        "/",
        "(",
        ")",
    ),
    *(
        "1",
        "8",
        "18",
        "18.0",
        "1,8",
        "36/2",
        "-18",
        " 18 ",
        "17",
        "9",
        "0",
        "e",
        "E5",
        "%",
        ",",
        ".",
        " or ",
        "pi",
        "x",
    ),
    *(
        "\\infty",
        "\\sum",
        "\\int",
        "\\lim",
        "!",
        "|",
        "<",
        ">",
        "\\le",
        "\\cup",
        "\\emptyset",
        "i",
        "\\pm",
        "\x00",
        "½",
    ),
    *("__import__('os').system('touch PWNED')", "exec('1')", "{{7*7}}", "%s%n", "\ud800", "\u202e", "１８", "١٨", "𝟙𝟠"),
]
TEXTS = st.text(max_size=80) | st.lists(st.sampled_from(PIECES), max_size=25).map("".join)


MARKS = ["\\boxed{{{}}}", "#### {}", "<answer>{}</answer>", "<answer>\\boxed{{{}}}</answer>"]
INSIDE = st.lists(st.sampled_from(PIECES), min_size=1, max_size=7).map("".join)
MARKED = st.builds(lambda before, mark, inside: before + mark.format(inside), TEXTS, st.sampled_from(MARKS), INSIDE)


@fuzzed
@given(TEXTS | MARKED, st.sampled_from(["18", "#### 18", "1,234.5", "-3", "1/2"]))
@example("\\boxed" * 5000, "18")
@example("\\boxed{" * 5000 + "18" + "}" * 5000, "18")
def test_any_completion_scores_0_or_1(completion: str, answer: str) -> None:
    for mode in ("strict", "lenient"):
        for function in (gsm8k, number, format_reward):
            assert function(completion, answer, answer_mode=mode) in (0.0, 1.0)


@fuzzed
@given(TEXTS | MARKED, TEXTS)
def test_an_arbitrary_reference_is_an_error_or_scores(completion: str, answer: str) -> None:
    for function in (gsm8k, number):
        try:
            assert function(completion, answer) in (0.0, 1.0)
        except ValueError as error:
            assert "no number" in str(error)


NUMBER_STYLES = [
    "{}",
    "${}",
    "\\${}",
    "{} apples",
    "x = {}",
    "{}.",
    "**{}**",
    "about {}",
    "{}\\%",
    "\\text{{{}}}",
    "{} km/h",
]


def written(value: Fraction, grouped: bool) -> str:
    """A decimal or a fraction that means `value`."""
    if value.denominator == 1:
        return f"{value.numerator:,}" if grouped else str(value.numerator)
    return f"{value.numerator}/{value.denominator}"


@fuzzed
@given(
    st.fractions(-(10**6), 10**6, max_denominator=50),
    st.fractions(-(10**6), 10**6, max_denominator=50),
    st.sampled_from(NUMBER_STYLES),
    st.sampled_from(MARKS),
    st.booleans(),
    TEXTS,
)
@example(Fraction(18), Fraction(180), "{}", "\\boxed{{{}}}", False, "18 ")
def test_another_marked_number_scores_0_whatever_precedes_it(
    gold: Fraction, other: Fraction, style: str, mark: str, grouped: bool, before: str
) -> None:
    answer = written(gold, grouped=False)
    completion = f"{before}\n" + mark.format(style.format(written(other, grouped)))
    assert gsm8k(completion, answer) == float(gold == other)


def values_in(text: str) -> set[Fraction]:
    """Every number that could be meant by some digits of `text`: an independent, generous reading."""
    digits = "".join(char if char in "0123456789." else " " if char != "," else "" for char in text).split()
    parts = [Fraction(run.strip(".")) for run in digits if run.strip(".").replace(".", "", 1).isdecimal()]
    parts += [Fraction(f"0{run.rstrip('.')}") for run in digits if run[0] == "." and run.rstrip(".").count(".") == 1]
    if "½" in text:
        parts += [Fraction(1, 2), *(part + Fraction(1, 2) for part in parts)]
    pairs = {a / b for a in parts for b in parts if b}
    mixed = {a + b for a in parts for b in pairs}
    # one digit each side of \frac without braces
    return {*parts, *pairs, *mixed, *(Fraction(int(a), int(b)) for a in text for b in text if a in D and b in D[1:])}


D = "0123456789"
SCALES = ("e", "E", "^", "\ud800")
PLAIN = [*(piece for piece in PIECES if not any(scale in piece for scale in SCALES)), *["18", " ", "= 18", "$18"] * 4]


@fuzzed
@given(TEXTS, st.sampled_from(MARKS), st.lists(st.sampled_from(PLAIN), min_size=1, max_size=7).map("".join))
def test_a_1_means_that_the_number_can_be_read_in_the_marked_answer(before: str, mark: str, inside: str) -> None:
    completion = before + mark.format(inside)
    reward = gsm8k(completion, "18")
    event(f"reward {reward}")
    if reward:
        marked = marked_answer(completion)
        assert marked is not None and Fraction(18) in values_in(marked)
        assert parse_number(marked) == 18


Expression = tuple[str, Fraction]


def combined(parts: tuple[Expression, Expression], form: str) -> Expression:
    """Two written values as a sum, difference, product or quotient, in LaTeX, with its exact value."""
    (left, a), (right, b) = parts
    match form:
        case "frac" if b:
            return f"\\frac{{{left}}}{{{right}}}", a / b
        case "/" if b:
            return f"({left})/({right})", a / b
        case "-":
            return f"{left} - ({right})", a - b
        case "times" | "cdot":
            return f"({left}) \\{form} ({right})", a * b
        case _:
            return f"{left} + ({right})", a + b


LEAVES = st.integers(0, 40).map(lambda n: (str(n), Fraction(n))) | st.sampled_from(
    [("2.5", Fraction(5, 2)), ("0.1", Fraction(1, 10)), ("1{,}000", Fraction(1000)), ("18", Fraction(18))]
)
EXPRESSIONS = st.recursive(
    LEAVES,
    lambda inner: st.builds(
        combined, st.tuples(inner, inner), st.sampled_from(["frac", "/", "-", "times", "cdot", "+"])
    ),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GraderPool]:
    """A grader of `math`, in processes of its own as in a run, which work in an empty directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("graders"))
        with GraderPool({"math": 1.0}, num_workers=2, timeout_s=1.0) as pool:
            yield pool


@in_a_pool
@given(st.lists(EXPRESSIONS, min_size=1, max_size=6), st.sampled_from([Fraction(18), Fraction(1, 3), Fraction(-5, 2)]))
@example(
    [("\\frac{36}{2}", Fraction(18)), ("9 \\cdot 2", Fraction(18)), ("9 \\cdot (2 + 1)", Fraction(27))], Fraction(18)
)
@example(
    [("\\frac{1{,}000}{\\frac{18}{1}}", Fraction(500, 9)), ("17 \\text{,} \\frac{18}{1}", Fraction(0))], Fraction(18)
)
def test_math_scores_1_only_for_arithmetic_that_is_equal(
    pool: GraderPool, expressions: list[Expression], gold: Fraction
) -> None:
    items = [GradeItem(f"\\boxed{{{latex}}}", written(gold, grouped=False)) for latex, _ in expressions]
    for (latex, value), grade in zip(expressions, pool.grade(items), strict=True):
        event(f"{grade.status} {grade.reward}")
        assert grade.status in ("ok", "timeout")  # on a machine that is busy
        assert grade.reward == 0.0 or value == gold, latex


@in_a_pool
@given(st.lists(TEXTS | MARKED, min_size=1, max_size=6))
@example(["\\boxed{9^{9^{9^{9}}}}", "\\boxed{18}", "\\boxed{" + "(" * 300 + "}", "\\boxed{" * 300])
@example(["\\boxed{__import__('os').system('touch PWNED')}", "\\boxed{().__class__}", "\\boxed{\\input{/etc/passwd}}"])
def test_math_is_0_or_1_or_in_time_an_error_and_runs_nothing(pool: GraderPool, texts: list[str]) -> None:
    grades = pool.grade([GradeItem(text, "18") for text in texts])
    assert [grade.status for grade in grades if grade.status not in ("ok", "timeout", "error")] == []
    for text, grade in zip(texts, grades, strict=True):
        event(f"{grade.status} {grade.reward}")
        assert grade.reward in (0.0, 1.0)
        if grade.reward:  # something must have said 18, in whatever form
            assert any(char.isdigit() or char in "½x" for char in marked_answer(text) or ""), text
    assert list(Path().iterdir()) == []
