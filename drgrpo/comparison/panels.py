"""The panels of a comparison's picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes

from drgrpo.comparison.curves import Band, band, smoothing_width
from drgrpo.comparison.results import Result
from drgrpo.comparison.table import Row
from drgrpo.report import clean
from drgrpo.report.axes import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED, SKY, Floats, empty, prepare

_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, SKY, GREY)
_NUM_CROSSES = 6
_FEW_STEPS = 25


@dataclass(frozen=True)
class Panel:
    """A column of the results and how it is shown."""

    title: str
    unit: str
    source: Literal["training", "evaluation"]
    column: str


@dataclass(frozen=True)
class Style:
    """An arm's colour, and its place among the arms."""

    colour: str
    place: int


def styles(results: Sequence[Result]) -> dict[str, Style]:
    """Style of each arm; after seven arms colours come again."""
    names = dict.fromkeys(result["arm"] for result in results)
    return {name: Style(_COLOURS[place % len(_COLOURS)], place) for place, name in enumerate(names)}


def draw_panel(axes: Axes, panel: Panel, results: Sequence[Result], arms: dict[str, Style]) -> None:
    """Each arm's mean over seeds, its band, and its seeds as faint lines."""
    prepare(axes, panel.title, panel.unit)
    bands = {name: _band(results, name, panel.source, panel.column) for name in arms}
    drawn = {name: found for name, found in bands.items() if found.steps.size}
    if not drawn:
        empty(axes)
        return
    for name, found in drawn.items():
        colour = arms[name].colour
        marker = "o" if found.steps.size <= _FEW_STEPS else None
        axes.fill_between(found.steps, found.low, found.high, color=colour, alpha=0.16, linewidth=0)
        if found.seeds.shape[0] > 1:
            axes.plot(found.steps, found.seeds.T, color=colour, linewidth=0.6, alpha=0.4)
        axes.plot(found.steps, found.mean, color=colour, linewidth=1.9, marker=marker, markersize=3.5)
    axes.set_ylim(*_limits(list(drawn.values())))


def draw_frontier(axes: Axes, results: Sequence[Result], arms: dict[str, Style]) -> None:
    """Reward against length as training goes on, with crosses for both 95 % intervals; a ring marks the last step."""
    prepare(axes, "Reward against length", "○ end")
    axes.set_xlabel("mean completion length, tokens", loc="right", fontsize=9, color=GREY, labelpad=1)
    pairs = {name: [_band(results, name, "training", column) for column in ("length", "reward")] for name in arms}
    pairs = {name: pair for name, pair in pairs.items() if pair[0].steps.size}
    if not pairs:
        empty(axes)
        return
    for name, (length, reward) in pairs.items():
        colour = arms[name].colour
        axes.plot(length.mean, reward.mean, color=colour, linewidth=1.6, alpha=0.9)
        at = np.unique(np.linspace(0, length.steps.size - 1, _NUM_CROSSES).round().astype(int))
        axes.errorbar(
            length.mean[at], reward.mean[at], xerr=_half(length)[at], yerr=_half(reward)[at], fmt="none",
            ecolor=colour, elinewidth=1.0, alpha=0.45,
        )  # fmt: skip
        axes.plot(
            length.mean[-1:], reward.mean[-1:], "o", markersize=8, markerfacecolor="white", markeredgecolor=colour,
            markeredgewidth=2,
        )  # fmt: skip
    axes.set_xlim(*_limits([length for length, _ in pairs.values()]))
    axes.set_ylim(*_limits([reward for _, reward in pairs.values()]))


def draw_differences(axes: Axes, rows: Sequence[Row], arms: dict[str, Style]) -> None:
    """Differences to the first arm in points: thick over problems, thin over seeds."""
    prepare(axes, "Difference to first arm", "points")
    axes.set_xlabel("")
    shown = [row for row in rows if row.difference]
    if not shown:
        empty(axes)
        return
    names_arms = len({row.arm for row in shown}) > 1
    for place, row in enumerate(shown):
        found, colour, height = row.difference, arms[row.arm].colour, -place
        assert found is not None
        if found.over_seeds:
            axes.plot([100 * end for end in found.over_seeds], [height] * 2, color=colour, linewidth=1.1)
        axes.plot(
            [100 * end for end in found.over_problems], [height] * 2, color=colour, linewidth=4, solid_capstyle="butt"
        )
        axes.plot(
            [100 * found.mean], [height], "o", markersize=7, markerfacecolor="white", markeredgecolor=colour,
            markeredgewidth=2,
        )  # fmt: skip
        axes.text(
            0.01, height + 0.2, clean(f"{row.score} {row.arm}" if names_arms else row.score, 40),
            transform=axes.get_yaxis_transform(), fontsize=9, color=INK, va="bottom", parse_math=False,
        )  # fmt: skip
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_ylim(-len(shown) + 0.4, 0.75)
    axes.set_yticks([])
    axes.grid(axis="y", visible=False)


def _band(results: Sequence[Result], arm: str, source: str, column: str) -> Band:
    seeds = [result[source] for result in results if result["arm"] == arm]
    width = smoothing_width(seeds) if source == "training" else 1
    return band(seeds, column, width=width)


def _half(of: Band) -> Floats:
    """Half the height of a band, 0 where it has none."""
    return np.nan_to_num((of.high - of.low) / 2)


def _limits(bands: Sequence[Band]) -> tuple[float, float]:
    """Room for every seed, and for bands as far as they reach no further than the seeds' range beyond it.

    With two seeds a t-interval is twelve standard errors wide to each side and would flatten the curves.
    """
    values = np.concatenate([found.seeds.ravel() for found in bands])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = (high - low) or max(abs(high), 1.0) * 0.1
    ends = np.concatenate([np.r_[found.low, found.high] for found in bands])
    ends = ends[np.isfinite(ends)]
    lowest = max(min([low, *ends]), low - room, 0.0 if low >= 0 else -np.inf)
    highest = min(max([high, *ends]), high + room)
    pad = 0.04 * (highest - lowest or room)
    return lowest - pad, highest + pad
