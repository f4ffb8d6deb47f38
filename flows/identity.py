"""Who this flow run is: the names under which the run's directory and MLflow know it."""

import uuid
from typing import TypedDict

from prefect.runtime import deployment, flow_run

from drgrpo.origin import Origin


class Identity(TypedDict):
    """Arguments of `drgrpo.opening.open_run`."""

    run_id: str
    experiment: str
    name: str
    tags: dict[str, str]


def own_id() -> str:
    """The present flow run's id; empty outside of one."""
    return flow_run.id or ""


def identity(origin: Origin | None = None) -> Identity:
    """The present flow run's id and names. A retried flow run has the same id, and so continues its run.

    With an `origin` that names no step it is that run's id.
    """
    own = own_id() or str(uuid.uuid4())
    run_id = origin.run_id if origin and origin.step is None else own
    flow_name = flow_run.flow_name or "drgrpo"
    return Identity(
        run_id=run_id,
        experiment=f"{flow_name}/{deployment.name}" if deployment.name else flow_name,
        name=flow_run.name or own,
        tags={"prefect.flow_run_id": own, "prefect.flow_run_url": flow_run.ui_url or ""},
    )
