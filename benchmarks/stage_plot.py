"""A picture of where a step's time goes, ours beside the peers'."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from drgrpo.report.axes import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED, SKY

# In the order of a step; names and colours of the stages.
_STAGES = {
    "generation": ("generation", BLUE),
    "scoring": ("scoring pass", SKY),
    "update": ("update", ORANGE),
    "sync": ("weights to the sampler", GREEN),
    "sleep": ("sleep and wake", PURPLE),
    "check": ("check after the push", RED),
    "orchestration": ("orchestration", GREY),
}
_PEERS = {"trl": "TRL", "openrlhf": "OpenRLHF"}


def stage_bars(summary: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """Seconds by stage of each bar: ours first, then every measured variant of a peer, the fastest first."""
    variants = sorted(
        (variant["step_s"], f"{shown} {name.replace(',', ', ')}", variant["stages"])
        for peer, shown in _PEERS.items()
        for name, variant in summary[peer].items()
        if variant["step_s"] is not None
    )
    ours = {"Dr. GRPO": summary["stages"]} if summary["stages"] else {}
    return ours | {name: stages for _, name, stages in variants}


def plot_stages(summary: Mapping[str, Any], path: Path) -> None:
    """Draw the bars of a summary into a PNG."""
    bars = stage_bars(summary)
    figure = Figure(figsize=(11, 1.6 + 0.6 * len(bars)), dpi=110, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for row, stages in enumerate(bars.values()):
        left = 0.0
        for stage, (_, colour) in _STAGES.items():
            axes.barh(row, stages.get(stage, 0.0), left=left, color=colour, height=0.62)
            left += stages.get(stage, 0.0)
        axes.text(left, row, f"  {left:.1f} s", va="center", fontsize=10, color=INK)
    axes.set_yticks(range(len(bars)), list(bars), fontsize=10, color=INK)
    axes.invert_yaxis()
    axes.set_xlabel("seconds of a step", loc="right", fontsize=9, color=GREY)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, colors=GREY)
    axes.margins(x=0.12)
    shown = [stage for stage in _STAGES if any(stages.get(stage, 0.0) > 0 for stages in bars.values())]
    handles = [Patch(color=_STAGES[stage][1], label=_STAGES[stage][0]) for stage in shown]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(shown), frameon=False)
    figure.savefig(path, format="png")
