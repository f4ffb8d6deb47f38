"""The `math` reward: symbolic equality by math-verify, for answers that are more than a number."""

import logging
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify

from drgrpo.rewards.extract import marked_answer
from drgrpo.rewards.numbers import answers_equal

logging.getLogger("math_verify").setLevel(logging.ERROR)

_WHOLE_BOX = [LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)]


def math_reward(completion: str, answer: str, *, answer_mode: str = "strict", **problem: Any) -> float:
    """1 if the completion's answer equals the reference by exact number or by math-verify, else 0.

    The reference is what `answer` marks (`\\boxed{}`, `####`, `<answer>`), or else all of it. `strict` reads only the
    marked answer of the completion; `lenient` lets math-verify search the whole text. math-verify's own time limit is
    off, because it rests on SIGALRM, which code in C ignores: the grader pool's limit applies.

    Raises ValueError if the reference cannot be parsed.
    """
    gold = marked_answer(answer) or answer.strip()
    gold_parsed = _parse_whole(gold)
    if not gold_parsed:
        raise ValueError(f"math-verify cannot parse the reference answer: {gold[-80:]!r}")
    marked = marked_answer(completion)
    if marked is not None and answers_equal(gold, marked):
        return 1.0
    if answer_mode == "strict" and not marked:
        return 0.0
    target = parse(completion, parsing_timeout=None) if answer_mode == "lenient" else _parse_whole(marked or "")
    return float(verify(gold_parsed, target, timeout_seconds=None))


def _parse_whole(text: str) -> list[Any]:
    """All of `text` or its characters; math-verify would else take a part that it can read, such as a denominator."""
    parsed: list[Any] = parse(f"\\boxed{{{text}}}", _WHOLE_BOX, extraction_mode="first_match", parsing_timeout=None)
    return parsed
