"""Numbers as people write them, read exactly and in linear time; a text that is not clearly one number is none."""

import re
from collections import deque
from collections.abc import Iterator
from fractions import Fraction

from drgrpo.rewards.notation import plain

MAX_CHARACTERS = 1000  # of a text that claims to be one number
MAX_DIGITS = 400  # of a number, written out

_DIGITS = r"(?:(?:[0-9]{1,3}+(?:,[0-9]{3})++(?![0-9])|[0-9]++)(?:\.[0-9]++)?+|(?<![0-9A-Za-z.])\.[0-9]++)"
_SCALES = {"one": 1, "k": 10**3, "hundred": 10**2, "thousand": 10**3} | {
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
_NUMBER = re.compile(
    rf"""(?P<sign>(?<![0-9A-Za-z).\]])[-+])?(?P<number>{_DIGITS})
    (?: [eE](?P<exponent>[+-]?[0-9]++)
      | \s?[×x*·]\s?10\^(?P<power>[+-]?[0-9]++)
      | \s?/\s?(?P<denominator>{_DIGITS})
      | \s(?P<numerator>[0-9]++)/(?P<parts>[0-9]++)
    )?
    (?:(?P<kilo>k)(?![A-Za-z])|\s?(?P<scale>hundred|thousand|million|billion|trillion)s?(?![A-Za-z]))?""",
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)

_SPACED_SIGN = re.compile(r"(^|=)\s*([-+])\s+(?=[0-9.])")
_SPOKEN_SIGN = re.compile(r"(?:\bnegative|(^|[=:]|\b(?:is|be)\b)\s*\bminus)\s+(?=[0-9.])", re.IGNORECASE)
_UNIT_POWER = re.compile(r"(?:(?<=[A-Za-z]{2})|(?<=\sm))\s?(?:\^[23](?![0-9])|[²³])")
_ARTICLE = re.compile(r"\b(?:[aA]\s(?=[A-Za-z]{2})|I\s(?=[a-z]{2}))")
_UNIT = re.compile(r"(?:\s[mgshlLCFK]|°\s?[CFK])(?![A-Za-z])")
_PER_UNIT = re.compile(r"(?:(?<=[A-Za-z])|^)\s?/\s?(?:(?<=[A-Za-z]/)[A-Za-z]+|[A-Za-z]{2,})")
_HYPHEN = re.compile(r"(?:(?<=[A-Za-z])|^)-(?=[A-Za-z]{2})")
_WORDS = re.compile(r"""(?:[A-Za-zÀ-ɏ]{2,}+(?:'s)?|[\s.,;:?!"'()\[\]%°¢#&`])*+""")
_LETTER = re.compile(r"(?<![A-Za-z'])[A-Za-z](?![A-Za-z])")
_NAMED = re.compile(r"\s*(?:[A-Za-z]{2,}+[\s,:;.]++)*+[A-Za-z]\s*")
_WORD = re.compile(r"[a-z]+")

# Words that change the number beside them: a text that holds one is no plain number.
_NOT_BESIDE = frozenset(["or", "nor", "not", "except", "half", "pi", "negative", "neg", "below", "sqrt", "root"]) | {
    *("log", "ln", "exp", "sin", "cos", "tan")
}
_NOT_BEFORE = frozenset(["twice", "double", "triple", "thrice", "quarter", "third", "fourth", "than", "isn"])
_OPERATORS = frozenset(["plus", "minus", "mod"])
_NOT_AFTER = frozenset(["squared", "cubed", "factorial"])


def parse_number(text: str) -> Fraction | None:
    """The one number that `text` states, exactly; None if it states none, several, or an expression.

    Currency signs, units, words, LaTeX styling, thousands separators, a percent sign and the left side of an equation
    may surround it: `$1,234.50`, `x = 18`, `18 apples`, `\\frac{1}{2}`, `1 1/2`, `2e3`, `2 million`. A percent sign is
    a unit: `50%` is 50. Texts over 1,000 characters and numbers over 400 digits (written out) are none.
    """
    if len(text) > MAX_CHARACTERS:
        return None
    body = _right_side(_readable(" ".join(plain(text).replace("**", " ").split())))
    if body is None:
        return None
    matches = list(_NUMBER.finditer(body))
    if len(matches) != 1:
        return None
    match = matches[0]
    before, after = body[: match.start()], body[match.end() :]
    return _value(match) if _may_precede(before) and _may_follow(after) else None


def last_number(text: str) -> Fraction | None:
    """The last number anywhere in `text`, or None; whatever stands around it does not matter. Linear time."""
    matches = deque(_NUMBER.finditer(_readable(plain(text))), maxlen=1)
    return _value(matches[0]) if matches else None


def answers_equal(a: str, b: str) -> bool:
    """Whether both texts state one number (see `parse_number`) and it is the same, exactly."""
    first = parse_number(a)
    return first is not None and first == parse_number(b)


def _readable(body: str) -> str:
    """Without exponents of units, and with every sign directly before its number."""
    return _SPOKEN_SIGN.sub(r"\1 -", _SPACED_SIGN.sub(r"\1\2", _UNIT_POWER.sub("", body)))


def _value(match: re.Match[str]) -> Fraction | None:
    if len(match[0]) > MAX_DIGITS:
        return None
    exponent = int(match["exponent"] or match["power"] or 0)
    denominator = _fraction(match["denominator"] or "1")
    if abs(exponent) > MAX_DIGITS or denominator == 0:
        return None
    magnitude = _fraction(match["number"]) * Fraction(10) ** exponent / denominator
    if match["numerator"]:
        numerator, parts = int(match["numerator"]), int(match["parts"])
        if magnitude.denominator != 1 or numerator >= parts:
            return None
        magnitude += Fraction(numerator, parts)
    scale = _SCALES[(match["scale"] or match["kilo"] or "one").lower()]
    return magnitude * scale * (-1 if match["sign"] == "-" else 1)


def _fraction(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))


def _right_side(body: str) -> str | None:
    """What follows the last `=`, where every left side is a name, a single variable or arithmetic; else None."""
    *left_sides, right = body.split("=")
    return right if all(_may_equal(side) for side in left_sides) else None


def _may_equal(side: str) -> bool:
    if side.rstrip().endswith(("<", ">", "!", "~")) or not _NOT_BESIDE.isdisjoint(_words(side)):
        return False
    side = _ARTICLE.sub("", side)
    return not _LETTER.search(side) or (_NAMED.fullmatch(side) is not None and _NOT_BEFORE.isdisjoint(_words(side)))


def _may_precede(text: str) -> bool:
    if text[-1:].isalpha() or not (_NOT_BESIDE | _OPERATORS | _NOT_BEFORE).isdisjoint(_words(text)):
        return False
    return _WORDS.fullmatch(_HYPHEN.sub(" ", _ARTICLE.sub("", text))) is not None


def _may_follow(text: str) -> bool:
    if text.startswith(("!", "(")) or not (_NOT_BESIDE | _OPERATORS | _NOT_AFTER).isdisjoint(_words(text)):
        return False
    text = _UNIT.sub(" ", _PER_UNIT.sub(" ", _ARTICLE.sub("", text)))
    return _WORDS.fullmatch(_HYPHEN.sub(" ", text)) is not None


def _words(text: str) -> Iterator[str]:
    return (match[0] for match in _WORD.finditer(text.lower()))
