"""A gate in numbers: which metric, beyond which bar, for how long."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from drgrpo.health.finding import Action

Kind = Literal["above", "below", "times_median", "share_of_median", "below_best"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One metric of a gate.

    - `above`, `below`: the bar is `limit`.
    - `times_median`, `share_of_median`: above, or below, `limit` times the median of the `window` readings before.
    - `below_best`: of evaluations, more than `limit` under the best one before.

    The gate is true while the last `patience` readings all lie beyond the bar, which follows from the readings before
    these: a bad value never moves the bar that it is held against. Half of `window` has to be there for a median.
    """

    gate: str
    metric: str
    kind: Kind
    action: Action
    limit: float
    patience: int
    window: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """A metric at one step; of an evaluation, `step` is the number of iterations done."""

    step: int
    value: float


@dataclass(frozen=True, slots=True)
class Bar:
    """What readings are held against: its value, in words, and of an evaluation the iterations done at the best one."""

    value: float
    words: str
    best_step: int = 0


def is_above(rule: Rule) -> bool:
    """Whether values over the bar are the bad ones."""
    return rule.kind in ("above", "times_median")


def is_beyond(rule: Rule, value: float, bar: Bar) -> bool:
    """Whether a value is a bad one; one that equals the bar is not."""
    return value > bar.value if is_above(rule) else value < bar.value


def bar_of(rule: Rule, readings: Sequence[Reading], end: int) -> Bar | None:
    """The bar that follows from the first `end` readings; None while they are too few."""
    return _BARS[rule.kind](rule, readings, end)


def _fixed(rule: Rule, readings: Sequence[Reading], end: int) -> Bar | None:
    return Bar(rule.limit, number(rule.limit))


def _by_median(rule: Rule, readings: Sequence[Reading], end: int) -> Bar | None:
    before = readings[max(end - rule.window, 0) : end]
    values = [reading.value for reading in before if math.isfinite(reading.value)]
    if len(values) < max(rule.window / 2, 1):
        return None
    middle = median(values)
    words = f"{number(rule.limit)} times the median {number(middle)} of the {len(values)} readings before"
    return Bar(rule.limit * middle, f"{number(rule.limit * middle)} ({words})")


def _by_best(rule: Rule, readings: Sequence[Reading], end: int) -> Bar | None:
    if not end:
        return None
    best = max(readings[:end], key=lambda reading: reading.value)
    words = f"{number(rule.limit)} under the best, {number(best.value)} after {best.step} iterations"
    return Bar(best.value - rule.limit, f"{number(best.value - rule.limit)} ({words})", best.step)


_BARS: dict[Kind, Callable[[Rule, Sequence[Reading], int], Bar | None]] = {
    "above": _fixed,
    "below": _fixed,
    "times_median": _by_median,
    "share_of_median": _by_median,
    "below_best": _by_best,
}


def number(value: float) -> str:
    """A value with four digits, or that it was none."""
    return f"{value:.4g}" if math.isfinite(value) else "not a finite number"
