import os
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from drgrpo.rewards.numbers import answers_equal, last_number, parse_number

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "200"))

NUMBERS = [
    ("18", 18),
    (" 18. ", 18),
    ("1,234", 1234),
    ("109,200,000", 109_200_000),
    ("30{,}000", 30_000),
    (r"30\,000", 30_000),
    (r"30,\!000", 30_000),
    ("30\u202f000", 30_000),
    ("$18", 18),
    (r"\$18", 18),
    ("18$", 18),
    ("US$18", 18),
    ("€ 18.50", Fraction(37, 2)),
    ("$1,234.50", Fraction(2469, 2)),
    ("18.00", 18),
    (".5", Fraction(1, 2)),
    ("025", 25),
    ("+18", 18),
    ("-3", -3),
    ("−3", -3),
    ("- 3", -3),
    ("-$3", -3),
    (r"\$-3", -3),
    ("negative 3", -3),
    ("minus 3 degrees", -3),
    ("It is minus 3.", -3),
    ("x = minus 3", -3),
    ("the answer is negative 3", -3),
    ("1/2", Fraction(1, 2)),
    ("-1/2", Fraction(-1, 2)),
    ("2/4", Fraction(1, 2)),
    ("1 1/2", Fraction(3, 2)),
    ("-1 1/2", Fraction(-3, 2)),
    ("½", Fraction(1, 2)),
    ("1½", Fraction(3, 2)),
    (r"\frac{1}{2}", Fraction(1, 2)),
    (r"\dfrac12", Fraction(1, 2)),
    (r"-\frac{1}{2}", Fraction(-1, 2)),
    (r"\frac{-1}{2}", Fraction(-1, 2)),
    (r"1\frac{1}{2}", Fraction(3, 2)),
    (r"\frac{1,000}{4}", 250),
    ("50%", 50),
    (r"50\%", 50),
    ("50 percent", 50),
    ("1e3", 1000),
    ("1.5E-3", Fraction(3, 2000)),
    (r"1.5 \times 10^{3}", 1500),
    ("1.5×10^3", 1500),
    ("3k", 3000),
    ("2 million", 2_000_000),
    ("$2.5 millions", 2_500_000),
    ("18 dollars", 18),
    ("18 apples", 18),
    ("18apples", 18),
    (r"18 \text{ dollars}", 18),
    (r"18\text{ cm}^2", 18),
    ("18 m^2", 18),
    ("18 square feet", 18),
    ("60 km/h", 60),
    ("3 m/s", 3),
    ("$5/hour", 5),
    ("18 miles per hour", 18),
    ("3 times", 3),
    ("18-year-old", 18),
    (r"18^\circ", 18),
    ("18°C", 18),
    ("x=18", 18),
    (r"\$18~dollars", 18),
    (r"\underline{18}", 18),
    ("So x = 18", 18),
    (r"x \approx 18", 18),
    ("15 + 3 = 18", 18),
    ("15 plus 3 = 18", 18),
    ("16 - 3 - 4 = 9 * 2 = 18", 18),
    ("x = 15 + 3 = 18", 18),
    ("total = - 3", -3),
    ("The answer is 18.", 18),
    ("He earns a total of **$18** a day!", 18),
    ("(18)", 18),
    ("...18", 18),
    ("Bob's 18 apples", 18),
    (r"$\mathbf{18}$", 18),
    (r"\(18\)", 18),
    ("9" * 300, int("9" * 300)),
]


@pytest.mark.parametrize(("text", "value"), NUMBERS)
def test_a_number_as_people_write_it_is_read_exactly(text: str, value: Fraction | int) -> None:
    assert parse_number(text) == value


NO_NUMBERS = [
    "",
    "eighteen",
    "18 or 20",
    "18, 20",
    "18 20",
    "1 234",
    "3-5",
    "15 + 3",
    "15 + x",
    "15 plus x",
    "total minus 15",
    "3 a",
    "3x",
    "x3",
    "x^2",
    "2^x",
    "2^3",
    "10²",
    r"2\pi",
    "2π",
    "2 pi",
    r"\sqrt{2}",
    "√4",
    "sqrt(16)",
    "3!",
    "2(x)",
    "5 squared",
    "3 and a half",
    "half of 18",
    "twice 9",
    "not 18",
    "more than 18",
    "18 below zero",
    "neg 18",
    "~18",
    "-(-18)",
    "isn't 18",
    "±3",
    "> 18",
    r"x \neq 18",
    "x != 18",
    "x <= 18",
    "3x = 18",
    "-x = 18",
    "x/2 = 18",
    "2*x = 18",
    "x + y = 18",
    "18 = x",
    "3:30",
    "1/0",
    "1/2/3",
    "1,23",
    "1,2345",
    "0,5",
    "1.2.3",
    "18 20/5",
    r"\frac{x}{2}",
    r"\frac123",
    "½½",
    "2万",
    "٣",
    "1e999999",
    "1e-999999",
    "1e" + "9" * 300,
    "9" * 401,
    "18" + " " * 1000,
    "nan",
    "inf",
    "0x12",
    "18kſ",
]


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_a_text_that_is_not_clearly_one_number_is_none(text: str) -> None:
    assert parse_number(text) is None


LAST = [
    ("She has 3 apples and 18 pears.", 18),
    ("5-3=2", 2),
    ("between 10-20", 20),
    ("The answer is -3.", -3),
    ("It costs $1,234.50!", Fraction(2469, 2)),
    (r"so \boxed{\frac{3}{4}}", Fraction(3, 4)),
    ("18 apples in 3 days", 3),
    ("2 million people", 2_000_000),
    ("#### 18", 18),
    ("y = - 18", -18),
    ("so negative 3.", -3),
    ("18 ft^2", 18),
    ("1.5e3 then x", 1500),
]


@pytest.mark.parametrize(("text", "value"), LAST)
def test_the_last_number_of_a_text_is_found(text: str, value: Fraction | int) -> None:
    assert last_number(text) == value


@pytest.mark.parametrize("text", ["", "no number here", "1/0", "7" * 100_000, "1e999999999"])
def test_a_text_without_a_usable_last_number_has_none(text: str) -> None:
    assert last_number(text) is None


def test_equality_is_exact_and_a_percent_sign_is_a_unit() -> None:
    assert answers_equal("30000", "30,000") and answers_equal("1/2", "0.5") and answers_equal("50%", "50")
    assert not answers_equal("50%", "0.5") and not answers_equal("0.333", "1/3")
    assert not answers_equal("apples", "apples")


HOSTILE = [
    "1",
    "-",
    ",",
    " ",
    ".",
    "\\",
    "{",
    "1,",
    "1,234",
    "1/",
    "=",
    "x=",
    "\\frac{",
    "^{",
    "$",
    "½",
    "\\frac{1}{",
    "a-",
]


@pytest.mark.parametrize("unit", [*HOSTILE, "1 ", "\\boxed{", "\\boxed ", "(", "\\,", "1e", "1.", "k", "²", "1{,}000"])
def test_100_000_characters_take_linear_time(unit: str) -> None:
    text = unit * (100_000 // len(unit))
    parse_number(text)
    parse_number(text[:1000])
    last_number(text)  # The suite's own time limit fails a quadratic one: 1e10 steps.


SIGNIFICANT = "0123456789.,-−+/$%\\{}()= ^exkK½²ſ×'\n\tabc"
PIECES = [r"\frac", r"\text{", r"\boxed{", "####", " million", " times", r"\times 10^", "10^{", "negative ", "−", "{,}"]


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.one_of(st.text(), st.lists(st.sampled_from([*SIGNIFICANT, *PIECES]), max_size=60).map("".join)))
@example("1 hundredſ")
@example("18\u212a")
def test_any_text_is_parsed_without_an_exception(text: str) -> None:
    for value in (parse_number(text), last_number(text)):
        assert value is None or isinstance(value, Fraction)


STYLES = [
    "{}",
    "${}",
    r"\${}",
    "{} dollars",
    r"\text{{about}} {}",
    "x = {}",
    "{}.",
    "{}%",
    "**{}**",
    "{} km/h",
]


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.integers(-(10**12), 10**12),
    st.integers(0, 3),
    st.sampled_from(STYLES),
    st.sampled_from(["{}", "{:,}"]),
    st.integers(-(10**12), 10**12),
)
def test_a_written_number_equals_itself_and_no_other(
    digits: int, decimals: int, style: str, grouping: str, other: int
) -> None:
    value = Fraction(digits, 10**decimals)
    whole, part = divmod(abs(digits), 10**decimals)
    number = ("-" if digits < 0 else "") + grouping.format(whole) + (f".{part:0{decimals}d}" if decimals else "")
    assert parse_number(style.format(number)) == value
    assert (parse_number(style.format(number)) == parse_number(str(other))) == (value == other)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.text(alphabet="0123456789.,-/ ", max_size=12))
@example("...18")
@example("-1 1/2")
@example("1,234 / 2.")
def test_a_value_is_what_the_digits_of_the_text_say(text: str) -> None:
    value = parse_number(text)
    if value is None:
        return
    runs = ["".join(run) for run in _runs(text) if any(char.isdigit() for char in run)]
    parts = [Fraction(run.lstrip(".") if run.startswith("..") else run.rstrip(".")) for run in runs]
    assert 1 <= len(parts) <= 3
    whole = parts.pop(0) if len(parts) != 2 else 0
    magnitude = whole + (parts[0] / parts[1] if parts else 0)
    assert value == (-magnitude if "-" in text else magnitude)
    assert text.count("-") <= 1


def _runs(text: str) -> list[list[str]]:
    runs: list[list[str]] = [[]]
    for offset, char in enumerate(text):
        if char in "0123456789.":
            runs[-1].append(char)
        elif char != "," or not text[offset - 1 : offset].isdigit():
            runs.append([])
    return runs
