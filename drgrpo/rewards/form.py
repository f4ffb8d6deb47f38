"""The `format` reward: whether the answer is marked the way it was asked for, right or wrong."""

from typing import Any

from drgrpo.rewards.extract import marked_answer, num_marks


def format_reward(completion: str, answer: str, *, answer_mode: str = "strict", **problem: Any) -> float:
    """1 if the completion marks one answer that is not empty, else 0; `answer` is not read.

    `strict`: exactly one `\\boxed{}` or `####` line; or, where answer tags are used, exactly one closed
    `<answer>…</answer>` after one `</think>` (the opening `<think>` may stand in the prompt).
    `lenient`: the last mark is closed and not empty.
    """
    if not marked_answer(completion):
        return 0.0
    if answer_mode == "lenient":
        return 1.0
    if "<answer>" in completion or "</answer>" in completion:
        return float(_is_r1(completion))
    return float(num_marks(completion) == 1)


def _is_r1(completion: str) -> bool:
    counts = [completion.count(tag) for tag in ("</think>", "<answer>", "</answer>")]
    if counts != [1, 1, 1] or completion.count("<think>") > 1:
        return False
    order = [completion.find(tag) for tag in ("<think>", "</think>", "<answer>", "</answer>")]
    between = completion[order[1] + len("</think>") : order[2]]
    return order == sorted(order) and not between.strip()
