"""Drawing shared by the panels of a plot: quiet axes, smoothed lines, labels at the lines' ends."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

Records = Sequence[Mapping[str, float]]
Floats = npt.NDArray[np.float64]

# After Okabe and Ito, distinct for the common kinds of colour vision; darkened where a label would be hard to read.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#D98200", "#009E73", "#D55E00", "#B5548C", "#3A9BD1"
INK, GREY, LIGHT = "#222222", "#767676", "#E4E4E4"


@dataclass(frozen=True)
class Line:
    """A metric (its key, or the part after the last slash) and how it is shown."""

    label: str
    key: str
    colour: str


def prepare(axes: Axes, title: str, unit: str = "") -> None:
    """Title at the left with its unit, a light horizontal grid, no frame, whole steps."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=8)
    if unit:
        axes.set_title(unit, loc="right", fontsize=9, color=GREY, pad=8)
    axes.grid(axis="y", color=LIGHT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.tick_params(which="both", colors=GREY, labelsize=9, length=0)
    axes.set_xlabel("step", loc="right", fontsize=9, color=GREY, labelpad=1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def series(records: Records, key: str) -> tuple[Floats, Floats]:
    """Steps and finite values of a metric, under its key or any namespace (`update/entropy` for `entropy`)."""
    names = dict.fromkeys(name for record in records for name in record)
    name = next((name for name in names if name == key or name.endswith(f"/{key}")), key)
    found = [(r["step"], r[name]) for r in records if name in r and math.isfinite(r[name])]
    return np.array([step for step, _ in found], dtype=float), np.array([value for _, value in found], dtype=float)


def draw_lines(
    axes: Axes, records: Records, lines: Sequence[Line], *, log: bool = False, low: float | None = None
) -> None:
    """Lines labelled at their ends; of many steps the running mean, with the values themselves faint behind."""
    ends: list[tuple[float, float, str, str]] = []
    for line in lines:
        steps, values = series(records, line.key)
        if log:
            steps, values = steps[values > 0], values[values > 0]
        if steps.size:
            ends.append((steps[-1], _draw(axes, steps, values, line.colour), line.label, line.colour))
    if log:
        axes.set_yscale("log")
    if not ends:
        empty(axes)
        return
    if low is not None:
        axes.set_ylim(bottom=min(low, axes.get_ylim()[0]))
    label_ends(axes, ends)


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each (x, y, label, colour) beside the right edge at the height of y; labels do not overlap."""
    axes.get_ylim()  # settles the limits: the transform of stale ones would misplace the labels
    to_axes = axes.transData + axes.transAxes.inverted()
    wanted = [float(to_axes.transform((x, y))[1]) for x, y, _, _ in ends]
    gap = 15 / (axes.get_window_extent().height or 1) * axes.figure.dpi / 72
    for (_, _, label, colour), height in zip(ends, spread(wanted, gap), strict=True):
        axes.text(1.02, height, label, transform=axes.transAxes, va="center", fontsize=9, color=colour)


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """The heights, at least `gap` apart, in their order, within [0, 1] where there is room."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    placed: dict[int, float] = {}
    floor = 0.0
    for index in order:
        placed[index] = max(heights[index], floor)
        floor = placed[index] + gap
    ceiling = 1.0
    for index in reversed(order):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return [placed[index] for index in range(len(heights))]


def empty(axes: Axes) -> None:
    """Say that there is nothing to draw."""
    axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=10)
    axes.set_yticks([])


def _draw(axes: Axes, steps: Floats, values: Floats, colour: str) -> float:
    """Draw one metric; returns the height of its end."""
    width = values.size // 20
    if width < 2:
        axes.plot(steps, values, color=colour, linewidth=1.8, marker="o" if values.size < 12 else None, markersize=3.5)
        return float(values[-1])
    axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.25)
    smooth = running_mean(values, width)
    axes.plot(steps, smooth, color=colour, linewidth=1.8)
    return float(smooth[-1])


def running_mean(values: Floats, width: int) -> Floats:
    """Mean of the last `width` values at each place (of fewer at the beginning). Shape [num_values]."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, values.size + 1)
    begin = np.maximum(end - width, 0)
    return np.asarray((sums[end] - sums[begin]) / (end - begin), dtype=np.float64)
