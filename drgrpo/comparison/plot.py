"""Pictures of a comparison: each arm's mean over seeds with its 95 % band, and the paired differences."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from drgrpo.comparison.panels import Panel, Style, draw_differences, draw_frontier, draw_panel, styles
from drgrpo.comparison.results import Result
from drgrpo.comparison.table import Row
from drgrpo.report import clean
from drgrpo.report.axes import INK

SECTIONS: dict[str, tuple[Panel | str, ...]] = {
    "outcome": (
        Panel("Held-out accuracy", "avg@k", "evaluation", "avg_at_k"),
        Panel("Held-out accuracy", "greedy", "evaluation", "greedy_pass1"),
        Panel("Training reward", "mean", "training", "reward"),
        "frontier",
    ),
    "length": (
        Panel("Length, all", "tokens", "training", "length"),
        Panel("Length, correct", "tokens", "training", "length_correct"),
        Panel("Length, incorrect", "tokens", "training", "length_incorrect"),
        Panel("Length, truncated", "tokens", "training", "length_truncated"),
    ),
    "signal": (
        Panel("Entropy", "nats", "training", "entropy"),
        Panel("Zero-variance groups", "share", "training", "zero_variance_share"),
        Panel("Truncated completions", "share", "training", "truncated_share"),
        "differences",
    ),
}
"""Rows of panels by name."""

_ROW_HEIGHT, _LINE_HEIGHT, _DPI = 3.9, 0.4, 110


def plot_comparison(
    results: Sequence[Result],
    rows: Sequence[Row],
    path: Path,
    *,
    sections: Sequence[str] = (),
    title: str = "",
    width: float = 17.0,
) -> None:
    """Draw `sections` (all where none is named) into a PNG, replaced at once when the picture is whole.

    Args:
        results: The JSON of each arm and seed; the first arm is the one that differences are to.
        rows: `comparison_table` of them.
        width: Inches; the narrower, the larger the text beside the curves.
    """
    chosen = [SECTIONS[name] for name in sections or SECTIONS]
    heading = _LINE_HEIGHT * (2 if title else 1) + 0.2
    height = heading + _ROW_HEIGHT * width / 17 * len(chosen)
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    arms = styles(results)
    _heading(figure, arms, title)
    grid = figure.add_gridspec(
        len(chosen), 4, left=0.6 / width, right=1 - 0.2 / width, bottom=0.55 / height,
        top=1 - (heading + 0.25) / height, wspace=3.4 / width, hspace=0.38,
    )  # fmt: skip
    for place, section in enumerate(chosen):
        for column, panel in enumerate(section):
            _draw(figure.add_subplot(grid[place, column]), panel, results, rows, arms)
    staged = path.with_name(f".{path.name}.new")
    figure.savefig(staged, format="png")
    staged.replace(path)


def _draw(
    axes: Axes, panel: Panel | str, results: Sequence[Result], rows: Sequence[Row], arms: dict[str, Style]
) -> None:
    if panel == "frontier":
        draw_frontier(axes, results, arms)
    elif panel == "differences":
        draw_differences(axes, rows, arms)
    else:
        assert isinstance(panel, Panel)
        draw_panel(axes, panel, results, arms)


def _heading(figure: Figure, arms: dict[str, Style], title: str) -> None:
    """The title, and below it the arms' names in their colours."""
    height = figure.get_figheight()
    top, left = 1 - 0.2 / height, 0.6 / figure.get_figwidth()
    if title:
        figure.text(left, top, clean(title, 120), va="top", fontsize=14, fontweight="bold", color=INK, parse_math=False)
        top -= _LINE_HEIGHT / height
    for name, style in arms.items():
        text = f"● {clean(name, 40)}"
        label = figure.text(left, top, text, va="top", fontsize=12, color=style.colour, parse_math=False)
        left = figure.transFigure.inverted().transform(label.get_window_extent().corners())[:, 0].max() + 0.015
