"""From the graders' answers to the reward columns of a sample table."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from drgrpo.advantage import overlong_penalty, shape_rewards
from drgrpo.config import TrainConfig
from drgrpo.rewards.grade import Grade

_SHOWN_CHARACTERS = 300


def reward_columns(
    rows: Mapping[str, Sequence[Any]], grades: Sequence[Grade], config: TrainConfig
) -> dict[str, list[Any]]:
    """The columns that grading adds to `rows`, of which `finish_reason` and `completion_ids` are read.

    Raises RuntimeError when more than `reward.max_failed_share` of the completions could not be graded.
    """
    _check_failures(grades, config.reward.max_failed_share)
    names = list(config.reward.functions)
    truncated = [reason == "length" for reason in rows["finish_reason"]]
    scores = {name: [grade.per_function.get(name, 0.0) for grade in grades] for name in names}
    zero = config.reward.truncated_reward == "zero"
    return {
        "reward": _shaped(grades, truncated, [len(ids) for ids in rows["completion_ids"]], config),
        **{f"reward_{name}": values for name, values in scores.items()},
        # Accuracy is the first reward function's; a truncated completion is not an answer.
        "correct": [
            score == 1.0 and not (cut and zero) for score, cut in zip(scores[names[0]], truncated, strict=True)
        ],
        "grader_status": [grade.status for grade in grades],
        "grader_message": [grade.message for grade in grades],
    }


def _check_failures(grades: Sequence[Grade], limit: float) -> None:
    # One that fails scores 0, which is right for a few; a reward function that is broken would train on zeros.
    failed = [grade for grade in grades if grade.status != "ok"]
    if len(failed) > limit * len(grades):
        # The message may hold the model's text: repr leaves no control character in it.
        first = f"{failed[0].status}: {failed[0].message[:_SHOWN_CHARACTERS]!r}"
        raise RuntimeError(
            f"{len(failed)} of {len(grades)} completions could not be graded, more than reward.max_failed_share = "
            f"{limit:g} allows; the first is {first}. Correct the function in reward.functions, or raise the share"
        )


def _shaped(
    grades: Sequence[Grade], truncated: Sequence[bool], lengths: Sequence[int], config: TrainConfig
) -> list[float]:
    reward = config.reward
    raw = torch.tensor([grade.reward for grade in grades], dtype=torch.float64)
    if reward.truncated_reward == "zero":
        raw[torch.tensor(truncated, dtype=torch.bool)] = 0.0
    shaped = shape_rewards(raw, scaling=reward.scaling, bias=reward.bias, clip=reward.clip)
    if reward.overlong.enabled:
        shaped = shaped + overlong_penalty(
            torch.tensor(lengths),
            max_completion_tokens=config.rollout.max_completion_tokens,
            buffer_tokens=reward.overlong.buffer_tokens,
            penalty=reward.overlong.penalty,
        )
    result: list[float] = shaped.tolist()
    return result
