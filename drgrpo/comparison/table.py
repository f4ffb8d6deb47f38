"""Scores of arms at their last step, and the paired difference of each arm to the first one, with both intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drgrpo.comparison.student import t_interval
from drgrpo.statistics import bootstrap_interval

Interval = tuple[float, float]
Scores = Mapping[int, Mapping[str, float]]
"""Seed to problem id to that problem's score in [0, 1]."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and problems with the two things that it could have come out differently by.

    Attributes:
        mean: Over the problems that all seeds have.
        over_problems: 95 % bootstrap interval over problems of the mean over seeds: other problems, the same models.
        over_seeds: 95 % t-interval over seeds of the mean over problems: other seeds, the same problems. None for one.
        num_seeds: Seeds.
        num_problems: Problems.
    """

    mean: float
    over_problems: Interval
    over_seeds: Interval | None
    num_seeds: int
    num_problems: int


@dataclass(frozen=True)
class Row:
    """One score of one arm; `difference` is that to the first arm, None for the first arm itself."""

    arm: str
    score: str
    value: Estimate
    difference: Estimate | None


def estimate(scores: Scores) -> Estimate:
    """Mean of `scores` with its intervals. Raises: ValueError when the seeds have no problem in common."""
    problems = sorted(set.intersection(*(set(of_seed) for of_seed in scores.values())))
    if not problems:
        raise ValueError("the seeds share no problem: they were evaluated on different data")
    table = [[of_seed[problem] for problem in problems] for of_seed in scores.values()]
    by_problem = [sum(column) / len(column) for column in zip(*table, strict=True)]
    mean, low, high = bootstrap_interval(by_problem)
    over_seeds = t_interval([sum(row) / len(row) for row in table])
    return Estimate(mean, (low, high), over_seeds, len(table), len(problems))


def difference(first: Scores, other: Scores) -> Estimate | None:
    """Mean of other - first, paired by seed and problem; None when they have no seed in common.

    Raises: ValueError when they have no problem in common.
    """
    paired = {
        seed: {p: other[seed][p] - value for p, value in first[seed].items() if p in other[seed]}
        for seed in first
        if seed in other
    }
    return estimate(paired) if paired else None


def comparison_table(results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """A row for each arm and score, arms in the order of `results` (the JSON of an arm and seed each)."""
    arms = list(dict.fromkeys(result["arm"] for result in results))
    rows = []
    for score in ("greedy", "avg_at_k"):
        by_arm = {arm: _scores(results, arm, score) for arm in arms}
        first = by_arm[arms[0]] if arms else {}
        for arm in (arm for arm in arms if by_arm[arm]):
            against = None if arm == arms[0] else difference(first, by_arm[arm])
            rows.append(Row(arm, score_label(results, score), estimate(by_arm[arm]), against))
    return rows


def score_label(results: Sequence[Mapping[str, Any]], score: str) -> str:
    """What people call a score: `greedy pass@1`, `avg@8`."""
    return "greedy pass@1" if score == "greedy" else "avg@" + "/".join(sorted({str(r["k"]) for r in results}))


def _scores(results: Sequence[Mapping[str, Any]], arm: str, score: str) -> Scores:
    return {r["seed"]: r["scores"][score] for r in results if r["arm"] == arm and score in r["scores"]}
