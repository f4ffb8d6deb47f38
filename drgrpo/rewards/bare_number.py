"""The `number` reward: a completion that is the number, without a mark; for arithmetic such as reasoning-gym's."""

from typing import Any

from drgrpo.rewards.extract import marked_answer
from drgrpo.rewards.numbers import last_number, parse_number


def number(completion: str, answer: str, *, answer_mode: str = "strict", **problem: Any) -> float:
    """1 if the completion's number equals the reference number exactly, else 0.

    `strict`: a marked answer where there is one, else the whole completion must state one number (`7`, `It is 7.`,
    `3 + 4 = 7`). `lenient`: the last number anywhere.

    Raises ValueError if the reference states no number.
    """
    gold = parse_number(answer)
    if gold is None:
        raise ValueError(f"the reference answer is no number: {answer[-80:]!r}")
    if answer_mode == "lenient":
        return float(last_number(completion) == gold)
    marked = marked_answer(completion)
    return float(parse_number(completion if marked is None else marked) == gold)
