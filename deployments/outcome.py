"""What a finished run is summed up to in the terminal: steps, evaluation before and after, and where to look."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from drgrpo.report import read_history, rich_table, summary_table

_SCORES = ("avg_at_k", "greedy", "pass_at_k")


def show_outcome(console: Console, run_dir: Path, *, run_url: str, served: bool) -> None:
    """Print the outcome of the run in `run_dir`.

    Args:
        console: Where to.
        run_dir: Holds history.jsonl and summary.json.
        run_url: Prefect's page of the flow run.
        served: Whether the UIs are up; otherwise the command that starts them is named.
    """
    summary = json.loads((run_dir / "summary.json").read_text())
    console.print(rich_table(summary_table(read_history(run_dir / "history.jsonl")), "Steps"))
    console.print(rich_table(_evaluation_rows(summary), "Held-out accuracy with 95 % intervals"))
    console.print(_verdict(summary["difference"]))
    console.print(f"\nPlot        {summary['plot']}", soft_wrap=True)
    console.print(f"Prefect UI  {run_url}\nMLflow UI   {summary['mlflow_url']}", soft_wrap=True)
    if not served:
        console.print("The UIs are up while `make serve` runs.")


def _evaluation_rows(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    before, after = summary["before"], summary["after"]
    scores = [score for score in _SCORES if f"evaluation/{score}" in before]
    k = f"{before.get('evaluation/k', float('nan')):.0f}"
    return [
        {"score": score.replace("_at_k", f"@{k}"), "before": _interval(before, score), "after": _interval(after, score)}
        for score in scores
    ]


def _interval(metrics: Mapping[str, float], score: str) -> str:
    mean, low, high = (metrics[f"evaluation/{score}{end}"] for end in ("", "_low", "_high"))
    return f"{mean:.1%} [{low:.1%}, {high:.1%}]"


def _verdict(difference: tuple[float, float, float]) -> str:
    mean, low, high = (100 * value for value in difference)
    shown = "it rose" if low > 0 else "it fell" if high < 0 else "no change is shown, the interval holds 0"
    return f"Paired difference of avg@k: {mean:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}: {shown}."
