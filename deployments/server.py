"""What is asked of the Prefect server. Import it once the environment names the server: Prefect reads it at import."""

import subprocess
import sys
from datetime import timedelta
from http import HTTPStatus

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture, ResourceSpecification
from prefect.exceptions import ObjectAlreadyExists, PrefectHTTPStatusError
from prefect.states import Crashed
from prefect.workers.process import ProcessWorker

from deployments.service import ServiceError
from deployments.steps import ROOT

POOL = "drgrpo"
RESTART = "drgrpo: restart crashed runs"


def ensure_pool() -> None:
    """Make the work pool if the server has none: one run at a time, because a run takes the whole machine.

    Raises `ServiceError` when the server does not know us.
    """
    template = ProcessWorker.get_default_base_job_template()
    description = "Runs of Dr. GRPO. Raise the limit when several machines work for it."
    pool = WorkPoolCreate(
        name=POOL, type="process", description=description, base_job_template=template, concurrency_limit=1
    )
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(pool)
        except ObjectAlreadyExists:  # it may have been changed by its owner, and stays so
            return
        except PrefectHTTPStatusError as error:
            if error.response.status_code != HTTPStatus.UNAUTHORIZED:
                raise
            remedy = "set PREFECT_API_AUTH_STRING; that of `make serve` is in .drgrpo/prefect-auth of its clone"
            raise ServiceError(f"the Prefect server refuses us without its login: {remedy}") from error


def ensure_restart() -> None:
    """Make the automation that schedules crashed runs with the tag `restart` again, unless its owner changed it.

    The flow run keeps its id, so the run goes on where its files end, as after Retry in the UI.
    """
    automation = AutomationCore(
        name=RESTART,
        description="A run whose process died (killed, out of memory, preempted) goes on where its files end.",
        trigger=EventTrigger(
            expect={"prefect.flow-run.Crashed"},
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=ResourceSpecification(
                {"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.restart"}
            ),
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
            # Prefect reports a death twice, and the second report takes a restart back: each has to be answered. A
            # run that is started twice thereby waits for itself.
            within=timedelta(0),
        ),
        actions=[
            ChangeFlowRunState(
                name="AwaitingRestart",
                state=StateType.SCHEDULED,
                message="The run's process died; it goes on where its files end.",
                force=True,
            )
        ],
    )
    with get_client(sync_client=True) as client:
        if not client.read_automations_by_name(RESTART):
            client.create_automation(automation)


def close_abandoned_runs() -> int:
    """Mark runs that were going on when the machine or its services were killed; returns their number.

    Each would keep its place in the pool, and so block every later run, for ever. Call it before a worker is there.
    """
    going_on = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
    runs_filter = FlowRunFilter.model_validate({"state": {"type": {"any_": going_on}}})
    pool_filter = WorkPoolFilter.model_validate({"name": {"any_": [POOL]}})
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=runs_filter, work_pool_filter=pool_filter)
        for run in runs:
            message = "The worker that ran it was stopped. Started again, the run goes on where its files end."
            client.set_flow_run_state(run.id, Crashed(message=message), force=True)
    return len(runs)


def deploy_all() -> list[str]:
    """Deploy everything in prefect.yaml; returns the names. Raises `ServiceError` with Prefect's output."""
    ensure_pool()
    ensure_restart()
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ServiceError(f"`prefect deploy --all` failed:\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}")
    with get_client(sync_client=True) as client:
        deployments = client.read_deployments(
            work_pool_filter=WorkPoolFilter.model_validate({"name": {"any_": [POOL]}})
        )
        flows = {flow.id: flow.name for flow in client.read_flows()}
    return sorted(f"{flows[deployment.flow_id]}/{deployment.name}" for deployment in deployments)
