"""An arm of a comparison as a Prefect task, and what Prefect's UI shows of the whole."""

import os
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from prefect import task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import StateType
from prefect.settings import get_current_settings
from prefect.states import Crashed

from drgrpo.comparison.comparison import Comparison
from drgrpo.comparison.plan import ArmRun
from drgrpo.comparison.processes import REFUSED, ArmDied, ArmProcesses, last_words
from drgrpo.report import code_span, markdown_table


@task(task_run_name="arm-{run.label}", tags=["arm"], cache_policy=NO_CACHE)
def train_arm(comparison: Comparison, processes: ArmProcesses, run: ArmRun, device: str) -> None:
    """Train one arm with one seed in a process of its own and write its result.

    Raises ArmDied when the process died and can be started again, RuntimeError when that is of no use.
    """
    close_flow_runs(comparison, run)
    before = comparison.seconds(run)
    status = processes.run(
        comparison.job(run),
        environment=_environment(device),
        log=comparison.log(run),
        on_tick=lambda seconds: comparison.spend(run, before + seconds),
    )
    if status:
        close_flow_runs(comparison, run)
    log = comparison.log(run)
    said = f"arm {run.label} ended with status {status}: {last_words(log)} (all that it printed: {log})"
    if status == REFUSED:
        raise RuntimeError(said)
    if status:
        raise ArmDied(said)
    comparison.settle(run, device)


def close_flow_runs(comparison: Comparison, run: ArmRun) -> None:
    """Mark flow runs of an arm whose process is gone without a word: they would be shown as running for ever."""
    tags = [f"comparison:{comparison.run_id}", f"arm:{run.arm}", f"seed:{run.seed}"]
    chosen = {"tags": {"all_": tags}, "state": {"type": {"any_": [StateType.RUNNING, StateType.PENDING]}}}
    with get_client(sync_client=True) as client:
        for flow_run in client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(chosen)):
            message = "Its process ended. The comparison goes on where its files end."
            client.set_flow_run_state(flow_run.id, Crashed(message=message), force=True)


def start_progress(comparison: Comparison) -> UUID:
    """Create the progress bar and the link to MLflow."""
    url = comparison.tracker.run_url(comparison.settings.mlflow_ui_url)
    create_link_artifact(link=url, link_text="MLflow run", key=f"mlflow-{comparison.run_id}")
    progress = create_progress_artifact(
        100 * comparison.share(), key=f"progress-{comparison.run_id}", description="Iterations of all arms done"
    )
    assert isinstance(progress, UUID)
    return progress


def show_progress(comparison: Comparison, progress: UUID, share: float) -> float:
    """Move the progress bar, from `share`; returns where it is now."""
    now = comparison.share()
    if now != share:
        update_progress_artifact(progress, 100 * now)
    return now


def show_runs(comparison: Comparison, states: Mapping[str, str]) -> None:
    """Renew the table of runs."""
    rows = [
        {
            "arm": run.arm,
            "seed": run.seed,
            "state": states[run.label],
            "steps": f"{comparison.num_steps(run)} of {run.config.total_steps}",
        }
        for run in comparison.runs
    ]
    create_table_artifact(table=rows, key=f"arms-{comparison.run_id}")


def show_report(comparison: Comparison, summary: Mapping[str, Any]) -> None:
    """Show the table of scores, and where the report is."""
    missing = "".join(f"\n\nNot finished: {code_span(', '.join(summary['missing']))}" if summary["missing"] else "")
    link = f"[MLflow run]({summary['mlflow_url']})"
    places = f"\n\nThe report is {code_span(summary['report'])}, and the artifact `report.html` of the {link}.\n"
    text = f"{markdown_table(summary['shown'])}{missing}{places}"
    create_markdown_artifact(markdown=text, key=f"report-{comparison.run_id}")


def _environment(device: str) -> dict[str, str]:
    """Variables of an arm's process: this process's settings of Prefect, but not which flow run it is."""
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT__")}
    return {**inherited, **settings, **({"CUDA_VISIBLE_DEVICES": device} if device else {})}
