"""One picture of a run: reward, length, evaluation, time, policy and mismatch over the steps."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from drgrpo.report.axes import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    Line,
    Records,
    draw_lines,
    empty,
    label_ends,
    prepare,
    series,
)
from drgrpo.report.tables import stage_names

STAGE_COLOURS = (BLUE, GREEN, SKY, ORANGE, PURPLE, RED, GREY)


def plot_run(history: Records, evaluations: Records, path: Path, *, title: str = "") -> None:
    """Draw a run into a PNG.

    Args:
        history: A record per step: `step` and metrics under the keys of MLflow.
        evaluations: A record per evaluation: `step` and the metrics of `EvaluationSummary`.
        path: The file, replaced at once when the picture is whole.
    """
    figure = Figure(figsize=(16, 8.5), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.035, y=0.975, ha="left", fontsize=14, fontweight="bold", color=INK, parse_math=False)
    grid = figure.add_gridspec(2, 3, left=0.035, right=0.915, bottom=0.06, top=0.89, wspace=0.42, hspace=0.3)
    _reward(figure.add_subplot(grid[0, 0]), history)
    _length(figure.add_subplot(grid[0, 1]), history)
    _evaluation(figure.add_subplot(grid[0, 2]), evaluations)
    _seconds(figure.add_subplot(grid[1, 0]), history)
    halves = grid[1, 1].subgridspec(2, 1, hspace=0.45)
    _entropy(figure.add_subplot(halves[0]), history)
    _grad_norm(figure.add_subplot(halves[1]), history)
    _mismatch(figure.add_subplot(grid[1, 2]), history)
    staged = path.with_name(f".{path.name}.new")
    figure.savefig(staged, format="png")
    staged.replace(path)


def _reward(axes: Axes, history: Records) -> None:
    prepare(axes, "Training reward", "mean over the step")
    draw_lines(
        axes, history, [Line("reward", "reward/mean", BLUE), Line("accuracy", "rollout/accuracy", ORANGE)], low=0
    )


def _length(axes: Axes, history: Records) -> None:
    prepare(axes, "Completion length", "tokens")
    lines = [
        Line("all", "completion_length/mean", INK),
        Line("correct", "completion_length/correct", GREEN),
        Line("incorrect", "completion_length/incorrect", RED),
        Line("truncated", "completion_length/truncated", PURPLE),
    ]
    draw_lines(axes, history, lines, low=0)


def _evaluation(axes: Axes, evaluations: Records) -> None:
    prepare(axes, "Held-out accuracy", "bars: 95 % interval")
    k = next((f"{record['evaluation/k']:.0f}" for record in evaluations if "evaluation/k" in record), "k")
    lines = [
        Line("greedy", "evaluation/greedy", BLUE),
        Line(f"avg@{k}", "evaluation/avg_at_k", ORANGE),
        Line(f"pass@{k}", "evaluation/pass_at_k", GREY),
    ]
    spacing = _step_range(evaluations) / 120
    ends = [
        end
        for place, line in enumerate(lines)
        for end in _interval_bars(axes, evaluations, line, (place - 1) * spacing)
    ]
    if not ends:
        empty(axes)
        return
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    label_ends(axes, ends)


def _step_range(records: Records) -> float:
    steps = [record["step"] for record in records]
    return max(max(steps, default=0) - min(steps, default=0), 1)


def _interval_bars(axes: Axes, records: Records, line: Line, shift: float) -> list[tuple[float, float, str, str]]:
    """Draw one score, its bars moved aside by `shift` steps; returns its end to be labelled, if it has one."""
    complete = [record for record in records if {line.key, f"{line.key}_low", f"{line.key}_high"} <= record.keys()]
    if not complete:
        return []
    steps, mean = series(complete, line.key)
    low, high = (series(complete, f"{line.key}_{side}")[1] for side in ("low", "high"))
    axes.errorbar(
        steps + shift, mean, yerr=np.stack([mean - low, high - mean]).clip(0), color=line.colour, linewidth=1.6,
        elinewidth=1.2, capsize=2.5, marker="o", markersize=4.5,
    )  # fmt: skip
    return [(steps[-1], mean[-1], line.label, line.colour)]


def _seconds(axes: Axes, history: Records) -> None:
    prepare(axes, "Time per step", "seconds, by stage")
    stages = stage_names(history)
    if not stages:
        empty(axes)
        return
    steps = np.array([record["step"] for record in history], dtype=float)
    parts = np.array([[record.get(f"seconds/{stage}", 0.0) for record in history] for stage in stages])
    tops = np.cumsum(parts, axis=0)
    colours = [STAGE_COLOURS[place % len(STAGE_COLOURS)] for place in range(len(stages))]
    _stack(axes, steps, parts, colours)
    axes.set_ylim(0, float(tops[-1].max()) * 1.05 or 1.0)
    middles = np.median((tops - parts / 2)[:, -max(1, steps.size // 10) :], axis=1)
    visible = parts.sum(axis=1) > 0.01 * parts.sum()
    ends = zip([steps[-1]] * len(stages), middles.tolist(), stages, colours, strict=True)
    label_ends(axes, [end for end, seen in zip(ends, visible, strict=True) if seen])


def _stack(axes: Axes, steps: np.ndarray, parts: np.ndarray, colours: list[str]) -> None:
    bottom = np.zeros_like(steps)
    for part, colour in zip(parts, colours, strict=True):
        if steps.size <= 60:
            axes.bar(steps, part, 0.85, bottom, color=colour, edgecolor="white", linewidth=0.4)
        else:
            axes.fill_between(steps, bottom, bottom + part, color=colour, linewidth=0, step="mid")
        bottom = bottom + part


def _entropy(axes: Axes, history: Records) -> None:
    prepare(axes, "Entropy", "nats per token")
    axes.tick_params(labelbottom=False)
    axes.set_xlabel("")
    draw_lines(axes, history, [Line("entropy", "entropy", BLUE)])


def _grad_norm(axes: Axes, history: Records) -> None:
    prepare(axes, "Gradient norm", "before clipping")
    draw_lines(axes, history, [Line("grad norm", "grad_norm", ORANGE)], low=0)


def _mismatch(axes: Axes, history: Records) -> None:
    prepare(axes, "Sampler against trainer", "log scale")
    lines = [
        Line("max |Δp|", "mismatch_max_abs_prob", PURPLE),
        Line("mean |Δ log p|", "mismatch_abs", ORANGE),
        Line("KL (k3)", "mismatch_k3", BLUE),
        Line("weight sync\n|Δ log p|", "mean_abs_logprob_diff", GREEN),
    ]
    draw_lines(axes, history, lines, log=True)
