"""Curves of several seeds as their mean with a band."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drgrpo.comparison.student import t_interval

Floats = npt.NDArray[np.float64]
Columns = Mapping[str, Sequence[float | None]]
"""Columns of equal length, one of them `step`; None where a step has no value."""

_SMOOTHED_SHARE = 20


@dataclass(frozen=True)
class Band:
    """Mean over seeds at each step, and its 95 % t-interval over seeds.

    Attributes:
        steps: Steps at which any seed has a value. Shape [num_steps], as all others.
        mean: Mean over the seeds that have a value there.
        low: Lower end of the interval; NaN where fewer than two seeds have a value.
        high: Upper end.
        seeds: Each seed's own (smoothed) values, NaN where it has none. Shape [num_seeds, num_steps].
    """

    steps: Floats
    mean: Floats
    low: Floats
    high: Floats
    seeds: Floats


def band(seeds: Sequence[Columns], name: str, *, width: int = 1) -> Band:
    """The band of column `name` over `seeds`; each seed is first smoothed by a running mean over `width` steps.

    A seed's running mean at a step that it has a value for is that of its values among the last `width` steps.
    """
    curves = [smoothed(_values(columns, name), width) for columns in seeds]
    steps = sorted(set().union(*curves))
    table = np.array([[curve.get(step, np.nan) for step in steps] for curve in curves]).reshape(len(curves), len(steps))
    mean = np.array([column[np.isfinite(column)].mean() for column in table.T])
    intervals = [t_interval(column[np.isfinite(column)].tolist()) or (np.nan, np.nan) for column in table.T]
    low, high = np.array(intervals, dtype=float).reshape(-1, 2).T
    return Band(np.array(steps, dtype=float), mean, low, high, table)


def smoothing_width(seeds: Sequence[Columns]) -> int:
    """Steps that a line is smoothed over: a twentieth of the longest curve."""
    return max((len(columns["step"]) // _SMOOTHED_SHARE for columns in seeds), default=1) or 1


def smoothed(curve: Mapping[float, float], width: int) -> dict[float, float]:
    """Step to the mean of the values at the last `width` steps up to it."""
    steps = np.array(sorted(curve), dtype=float)
    sums = np.concatenate([[0.0], np.cumsum([curve[step] for step in steps])])
    begin, end = np.searchsorted(steps, steps - width, side="right"), np.arange(1, steps.size + 1)
    means = (sums[end] - sums[begin]) / (end - begin)
    return dict(zip(steps.tolist(), means.tolist(), strict=True))


def _values(columns: Columns, name: str) -> dict[float, float]:
    steps, values = columns["step"], columns.get(name, ())
    return {step: value for step, value in zip(steps, values, strict=False) if step is not None and value is not None}
