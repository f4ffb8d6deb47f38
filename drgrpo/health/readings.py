"""What the gates read of a run's records, and what they leave out."""

import math
from collections.abc import Mapping, Sequence

from drgrpo.health.rule import Reading, Rule

Records = Sequence[Mapping[str, float]]

STEP_TOKENS_PER_S = "tokens_per_s"
"""Completion tokens over the seconds of the whole step, whichever stage takes them."""

# Elsewhere NaN means that there was nothing to measure, such as the entropy of a step that trained on no token.
_INFINITE_WHEN_LOST = ("update/grad_norm", "sync/mean_abs_logprob_diff")


def readings(rule: Rule, history: Records, evaluations: Records, *, step: int) -> list[Reading]:
    """The rule's metric up to the end of iteration `step`, oldest first; what was not measured is left out.

    A replayed run's records reach beyond the present step: they are of another time, and do not count.
    """
    evaluated = rule.kind == "below_best"
    records = evaluations if evaluated else history
    found = [
        (int(record["step"]), _value(rule.metric, record))
        for record in records
        if record["step"] <= (step + 1 if evaluated else step)
    ]
    return [Reading(at, value) for at, value in found if not math.isnan(value)]


def _value(metric: str, record: Mapping[str, float]) -> float:
    """The metric of a record; NaN when the step did not measure it."""
    if metric == STEP_TOKENS_PER_S:
        return _step_tokens_per_s(record)
    value = record.get(metric)
    if value is None:
        return math.nan
    if metric in _INFINITE_WHEN_LOST and not math.isfinite(value):
        return math.inf
    # No group had a signal: the gradient is zero because nothing was trained, and says nothing of the usual norm.
    if metric == "update/grad_norm" and value == 0:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _step_tokens_per_s(record: Mapping[str, float]) -> float:
    # A step whose completions came from disk has no rollout/tokens_per_s: its short time is no speed.
    if not math.isfinite(record.get("rollout/tokens_per_s", math.nan)):
        return math.nan
    seconds = record.get("seconds/step", 0.0)
    return record.get("rollout/completion_tokens", math.nan) / seconds if seconds > 0 else math.nan
