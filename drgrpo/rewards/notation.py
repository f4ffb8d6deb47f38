"""LaTeX and Unicode notation of numbers, rewritten as plain ASCII; every step is linear in the length of the text."""

import re

_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("−‐‑‒–﹣－", "-"),
        "⁄": "/",
        "∕": "/",
        "∗": "*",
        "≈": "=",
        **dict.fromkeys("’ʼ", "'"),
        **dict.fromkeys("“”", '"'),
    }
)
_VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5"} | {
    "⅘": "4/5", "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8"
}  # fmt: skip
_VULGAR_FRACTION = re.compile(f"[{''.join(_VULGAR)}]")
_LATEX_FRACTION = re.compile(
    r"\\[dtc]?frac(?:\s*\{\s*(-?[0-9][0-9,.]*+)\s*\}\s*\{\s*([0-9][0-9,.]*+)\s*\}|\s*([0-9])\s*([0-9]))"
)
_THOUSANDS = re.compile(r"(?<=[0-9])(?:\{,\}|,?\\[!,]|[\u00a0\u2009\u202f])(?=[0-9]{3}(?![0-9]))")
_LATEX_SPACE = re.compile(r"\\(?:[,;:! ()\[\]]|(?:quad|qquad|left|right)(?![A-Za-z]))|(?<=[0-9A-Za-z])~")
_LATEX_STYLE = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf|tt|bb)|mbox|underline|bm|boldsymbol|boxed)(?![A-Za-z])"
)
_LATEX_SIGNS = [
    (re.compile(r"\\(?:times)(?![A-Za-z])"), "×"),
    (re.compile(r"\\(?:cdot)(?![A-Za-z])"), "·"),
    (re.compile(r"\\approx(?![A-Za-z])"), "="),
    (re.compile(r"\^\s?\{?\s?\\(?:circ|degree)(?![A-Za-z])\s?\}?"), "°"),
    (re.compile(r"\\([%#&_])"), r"\1"),
]
_POWER = re.compile(r"\^\s?\{\s?([+-]?[0-9]++)\s?\}")
_SIGNED_CURRENCY = re.compile(r"([-+])\s?(?:US)?\\?[$€£¥₹]\s?(?=[0-9.])")
_CURRENCY = re.compile(r"(?:\bUS)?\\?[$€£¥₹]")


def plain(text: str) -> str:
    """`text` with its numbers in ASCII: `\\frac{1}{2}` → `1/2`, `30{,}000` → `30,000`, `−\\$3` → `-3`, `1½` → `1 1/2`.

    Braces and styling commands become spaces; commands that are not known stay, so that a caller can see them.
    """
    text = _VULGAR_FRACTION.sub(lambda match: _apart(match, _VULGAR[match[0]]), text.translate(_CHARACTERS))
    text = _THOUSANDS.sub(",", text)
    if "\\" in text:
        text = _plain_latex(text)
    text = _SIGNED_CURRENCY.sub(r"\1", text)
    text = _CURRENCY.sub(" ", text)
    text = _POWER.sub(r"^\1", text)
    return text.replace("{", " ").replace("}", " ")


def _plain_latex(text: str) -> str:
    text = _LATEX_FRACTION.sub(lambda match: _apart(match, f"{match[1] or match[3]}/{match[2] or match[4]}"), text)
    text = _LATEX_SPACE.sub(" ", text)
    text = _LATEX_STYLE.sub(" ", text)
    for pattern, sign in _LATEX_SIGNS:
        text = pattern.sub(sign, text)
    return text


def _apart(match: re.Match[str], fraction: str) -> str:
    # Digits on either side must not fuse with the fraction, and a sign before it must stay attached.
    follows_digit = match.string[match.start() - 1 : match.start()].isdigit()
    return f" {fraction} " if follows_digit else f"{fraction} "
