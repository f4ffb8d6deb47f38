"""Where a completion marks its answer: `\\boxed{…}`, `#### …` or `<answer>…</answer>`; linear in its length."""

import re
from collections import deque
from typing import NamedTuple

_BOX = re.compile(r"\\boxed\s*+\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_MARKS = re.compile(r"(?:####[^\n#\\]{0,40})?\\boxed\s*+\{|#{4,}+")
_LINE_END = re.compile(r"\n|</answer>")


class Mark(NamedTuple):
    """An answer and the character offset at which its mark begins; the answer is None where a box is not closed."""

    start: int
    answer: str | None


def last_hash_line(text: str) -> str | None:
    """The rest of the line after the last `####`, stripped; None if there is none."""
    mark = _last_hash(text)
    return None if mark is None else mark.answer


def marked_answer(text: str) -> str | None:
    """The answer whose mark begins last: a box inside an answer tag counts, an answer that was revised does not.

    None if nothing is marked, or the last mark is a box that is not closed.
    """
    marks = [mark for mark in (_last_box(text), _last_hash(text), _last_tag(text)) if mark is not None]
    return max(marks).answer if marks else None


def num_marks(text: str) -> int:
    """How many `\\boxed{` and `####` marks the text holds; `#### \\boxed{18}` on one line is one."""
    return sum(1 for _ in _MARKS.finditer(text))


def _last_box(text: str) -> Mark | None:
    openings = deque(_BOX.finditer(text), maxlen=1)
    return Mark(openings[0].start(), _up_to_closing_brace(text, openings[0].end())) if openings else None


def _up_to_closing_brace(text: str, start: int) -> str | None:
    depth = 1
    for match in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return text[start : match.start()].strip()
    return None


def _last_hash(text: str) -> Mark | None:
    start = text.rfind("####")
    if start < 0:
        return None
    end = _LINE_END.search(text, start)
    return Mark(start, text[start + 4 : end.start() if end else len(text)].strip())


def _last_tag(text: str) -> Mark | None:
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return None if end < 0 or start < 0 else Mark(start, text[start + len("<answer>") : end].strip())
