"""Text from a model or dataset made harmless for terminals, Markdown and HTML."""

import re
import unicodedata

_ESCAPE_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]{0,64}[ -/]{0,16}[@-~]"  # CSI: colours, cursor movement
    r"|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]{0,512}(?:\x07|\x1b\\|\x9c)"  # OSC: window titles, links
    r"|\x1b[ -/]{0,16}[0-~]"
)
_DROPPED = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})  # control, format (also right-to-left overrides), unassigned


def clean(text: str, limit: int = 600) -> str:
    """One printable line of at most about `limit` characters; of longer text the beginning and the end.

    Line ends become ⏎. Escape sequences, control characters and invisible or direction-changing characters are removed.
    """
    cut = text if len(text) <= 4 * limit else f"{text[: 2 * limit]}\n…\n{text[-2 * limit :]}"
    plain = _ESCAPE_SEQUENCES.sub("", cut.replace("\r\n", "\n"))
    line = "".join(_printable(character) for character in plain).strip()
    if len(line) <= limit:
        return line
    tail = limit * 2 // 5
    return f"{line[: limit - tail]} … {line[-tail:]}"


def code_span(text: str) -> str:
    """Cleaned text as a Markdown code span, in which neither Markdown nor HTML is interpreted (CommonMark 6.1)."""
    if not text:
        return ""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if text[0] in "` " or text[-1] in "` " else f"{fence}{text}{fence}"


def _printable(character: str) -> str:
    if character == "\n" or unicodedata.category(character) in ("Zl", "Zp"):
        return " ⏎ "
    if character == "\t":
        return " "
    return "" if unicodedata.category(character) in _DROPPED else character
