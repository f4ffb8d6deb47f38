"""Health gates in Prefect: findings in the log, as an artifact and in MLflow, and the wait for a person's decision.

A healthy step costs no call of Prefect's API: the task runs for findings only.
"""

import uuid
from collections.abc import Sequence
from typing import Literal

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.logging import get_run_logger
from pydantic import Field

from drgrpo.config.health import HealthConfig
from drgrpo.health import Finding, HealthStop, RollBack, findings, findings_page, section
from drgrpo.health.told import is_told, tell
from drgrpo.report import read_history
from drgrpo.rollback import num_rollbacks
from drgrpo.run import Run

POLL_INTERVAL_S = 5


class Decision(RunInput):
    """The form of a paused run."""

    decision: Literal["continue", "stop", "rollback"] = Field(
        description="continue: leave the run as it is; stop: end it; rollback: go on from an earlier checkpoint with a "
        "lower learning rate"
    )


def check_health(run: Run, *, step: int) -> None:
    """Look at the run after the commit of iteration `step`, and act on what is found. To be called from the flow.

    What was found follows from the records alone. `health.jsonl` remembers what was shown and what a person answered
    with "continue", so that a replay asks nobody twice; a gate that stops or rolls back does so as long as it is true.

    Raises:
        HealthStop: A gate or a person ends the run, nobody answered, or the run had its rollbacks already.
        RollBack: A gate or a person wants the run to go on from before the finding.
    """
    config = run.config.health
    evaluations = read_history(run.directory / "evaluations.jsonl")
    found = findings(config.rules(), run.history(), evaluations, step=step)
    told = run.directory / "health.jsonl"
    new = [finding for finding in found if finding.is_open and not is_told(told, finding)]
    if not new:
        return
    report_health(run, found, new, step=step)
    tell(told, step, [finding for finding in new if finding.action == "warn"])
    _act(config, new, num_before=num_rollbacks(run.run_id))
    tell(told, step, new)


@task(task_run_name="health-{step}", tags=["health"], cache_policy=NO_CACHE)
def report_health(run: Run, found: Sequence[Finding], new: Sequence[Finding], *, step: int) -> None:
    """Show what is new in the log, count it in MLflow, and renew the page of all findings."""
    for finding in new:
        get_run_logger().warning("Health gate %s: %s %s", finding.gate, finding.message, finding.remedy)
    counts = {f"health/{gate}": float(sum(f.gate == gate for f in found)) for gate in {f.gate for f in new}}
    run.tracker.log_metrics(counts, step)
    create_markdown_artifact(
        markdown=findings_page(found), key=f"health-{run.run_id}", description="What the health gates found"
    )


def _act(config: HealthConfig, new: Sequence[Finding], *, num_before: int) -> None:
    """Return to go on, raise otherwise. The strictest action wins; a rollback goes to before all of its findings."""
    asked = {action: [f for f in new if f.action == action] for action in ("stop", "rollback", "pause")}
    if asked["stop"]:
        raise HealthStop(asked["stop"][0])
    if asked["rollback"] and num_before >= config.max_rollbacks:
        raise HealthStop(_earliest(asked["rollback"]), f"health.max_rollbacks = {config.max_rollbacks} is used up")
    if asked["rollback"]:
        raise RollBack(_earliest(asked["rollback"]))
    if asked["pause"]:
        _follow(_ask(asked["pause"], config.pause_timeout_s), asked["pause"])


def _ask(paused: Sequence[Finding], timeout_s: int) -> str:
    """Pause the flow run until a person decides. Raises HealthStop when nobody does."""
    form = Decision.with_initial_data(description="\n".join(section(finding) for finding in paused))
    try:
        # Prefect takes a key that it knows for a pause that is over, and counts from 1 again after Retry.
        answer = pause_flow_run(
            wait_for_input=form, timeout=timeout_s, poll_interval=POLL_INTERVAL_S, key=f"health-{uuid.uuid4()}"
        )
    except FlowPauseTimeout as error:
        raise HealthStop(paused[0], f"paused, and nobody decided within {timeout_s} s") from error
    return answer.decision


def _follow(decision: str, paused: Sequence[Finding]) -> None:
    if decision == "stop":
        raise HealthStop(paused[0], "decided by a person")
    if decision == "rollback":
        raise RollBack(_earliest(paused), "decided by a person")


def _earliest(found: Sequence[Finding]) -> Finding:
    return min(found, key=lambda finding: finding.last_good)
