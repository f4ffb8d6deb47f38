"""What Prefect's UI shows of a run: progress, the steps' metrics, evaluation samples, and the way to MLflow."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import pyarrow as pa
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from drgrpo.report import markdown_table, samples_table, summary_table
from drgrpo.run import Run


def start_progress(run: Run) -> UUID:
    """Create the progress bar and the link to MLflow."""
    create_link_artifact(
        link=run.tracker.run_url(run.settings.mlflow_ui_url), link_text="MLflow run", key=f"mlflow-{run.run_id}"
    )
    progress = create_progress_artifact(0.0, key=f"progress-{run.run_id}", description="Iterations done")
    assert isinstance(progress, UUID)
    return progress


def show_step(run: Run, progress: UUID, step: int) -> None:
    """Move the progress bar and renew the table of steps."""
    update_progress_artifact(progress, 100.0 * (step + 1) / run.config.total_steps)
    create_table_artifact(table=summary_table(run.history()), key=f"steps-{run.run_id}")


def show_evaluation(run: Run, table: pa.Table, metrics: Mapping[str, float], step: int) -> None:
    """Show the evaluation's numbers and a few samples in Prefect and MLflow."""
    shown = run.config.evaluation.num_shown
    create_table_artifact(
        table=samples_table(table, shown), key=f"samples-{run.run_id}", description=f"Samples after {step} iterations"
    )
    run.tracker.log_table(samples_table(table, shown, markdown=False), f"samples/{step:06d}.json")


def show_summary(run: Run, summary: Mapping[str, Any]) -> None:
    """Show evaluation before and after."""
    mean, low, high = summary["difference"]
    keys = [
        key for key in ("evaluation/greedy", "evaluation/avg_at_k", "evaluation/pass_at_k") if key in summary["after"]
    ]
    rows = [{"metric": key, **{when: _interval(summary[when], key) for when in ("before", "after")}} for key in keys]
    text = f"avg@k changed by {mean:+.3f} (95 % interval {low:+.3f} to {high:+.3f})."
    create_markdown_artifact(markdown=f"{markdown_table(rows)}\n\n{text}\n", key=f"summary-{run.run_id}")


def _interval(metrics: Mapping[str, float], key: str) -> str:
    return f"{metrics[key]:.3f} [{metrics[f'{key}_low']:.3f}, {metrics[f'{key}_high']:.3f}]"
