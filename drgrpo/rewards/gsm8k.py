"""The `gsm8k` reward: the number of the answer against the number after `####` in the reference."""

from typing import Any

from drgrpo.rewards.extract import last_hash_line, marked_answer
from drgrpo.rewards.numbers import last_number, parse_number


def gsm8k(completion: str, answer: str, *, answer_mode: str = "strict", **problem: Any) -> float:
    """1 if the completion's answer equals the reference number exactly, else 0.

    `answer` is a GSM8K solution that ends in `#### <number>`, or a bare number. `strict` reads the last `\\boxed{}`,
    `####` line or `<answer>` tag, whichever begins last; `lenient` reads the last number anywhere.

    Raises ValueError if the reference states no number.
    """
    gold_text = last_hash_line(answer)
    gold = parse_number(answer if gold_text is None else gold_text)
    if gold is None:
        raise ValueError(f"the reference answer ends in no number: {answer[-80:]!r}")
    if answer_mode == "lenient":
        return float(last_number(completion) == gold)
    marked = marked_answer(completion)
    return float(marked is not None and parse_number(marked) == gold)
