"""`make quickstart`: from nothing to a trained model. Starts services, deploys, runs `drgrpo/quickstart`, reports."""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from deployments.environment import read_environment
from deployments.outcome import show_outcome
from deployments.progress import Progress
from deployments.service import ServiceError
from deployments.services import Services, running_services, served
from deployments.steps import ROOT, load_deployment
from drgrpo.config.errors import ConfigError, Mistake
from drgrpo.config.overrides import load_config
from drgrpo.settings import load_settings

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

DEPLOYMENT = "drgrpo/quickstart"
POLL_S = 2.0


class RunFailed(RuntimeError):
    """The flow run ended in another state than Completed."""


def quickstart(overrides: dict[str, Any], console: Console) -> None:
    """Run the deployment with `overrides`.

    Raises `ConfigError`, before anything starts, `ServiceError` and `RunFailed`.
    """
    started = time.monotonic()
    settings = load_settings()
    total_steps = load_config(load_deployment("quickstart"), overrides).total_steps
    environment = read_environment(state_dir=settings.root / ".drgrpo")
    if served(environment):
        os.environ.update(environment.variables)
        run(Services(environment, settings), overrides, total_steps, console)
    else:
        with running_services(environment, settings, purpose="quickstart") as services:
            console.print(f"Starting services (logs in {environment.state_dir / 'logs'}) ...", soft_wrap=True)
            services.start_server()
            services.start_worker()
            run(services, overrides, total_steps, console)
    console.print(f"{(time.monotonic() - started) / 60:.1f} minutes.")


def run(services: Services, overrides: dict[str, Any], total_steps: int, console: Console) -> None:
    """Deploy everything, run the deployment to its end with live progress, and report."""
    from prefect.client.orchestration import get_client  # Prefect reads its environment when it is imported
    from prefect.states import Cancelled
    from prefect.utilities.urls import url_for

    from deployments import server

    console.print(f"Deployed {', '.join(server.deploy_all())}", soft_wrap=True)
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name(DEPLOYMENT)
        flow_run = client.create_flow_run_from_deployment(deployment.id, parameters={"overrides": overrides})
        run_dir = services.settings.runs_dir / str(flow_run.id)
        url = url_for(flow_run) or ""
        console.print(f"Run {flow_run.name}: {url}\n{services.environment.login}", soft_wrap=True, end="")
        try:
            with Progress(console, run_dir, total_steps) as progress:
                follow(client, flow_run, services, progress)
        except SystemExit:  # by a signal; a run that waits would be taken up by the next worker
            client.set_flow_run_state(flow_run.id, Cancelled(message="make quickstart was stopped"), force=True)
            raise
        check_state(client, flow_run)
    show_outcome(console, run_dir, run_url=url, served=not services.environment.local or served(services.environment))


def follow(client: "SyncPrefectClient", flow_run: "FlowRun", services: Services, progress: Progress) -> None:
    """Show progress until the run is over."""
    while True:
        services.check()
        state = client.read_flow_run(flow_run.id).state
        progress.show(_stage(client, flow_run) if state and state.is_running() else str(state and state.name).lower())
        if state and state.is_final():
            return
        time.sleep(POLL_S)


def check_state(client: "SyncPrefectClient", flow_run: "FlowRun") -> None:
    """Raise `RunFailed` with the state's message unless the run completed."""
    state = client.read_flow_run(flow_run.id).state
    if state and not state.is_completed():
        raise RunFailed(f"run {flow_run.name} ended as {state.name}: {state.message}")


def _stage(client: "SyncPrefectClient", flow_run: "FlowRun") -> str:
    """Name of the task that was started last."""
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.client.schemas.sorting import TaskRunSort

    this = FlowRunFilter.model_validate({"id": {"any_": [flow_run.id]}})
    tasks = client.read_task_runs(flow_run_filter=this, sort=TaskRunSort.EXPECTED_START_TIME_DESC, limit=1)
    return tasks[0].name if tasks else "starting the engines"


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """`["seed=1", "optimizer.lr=0"]` as a mapping; a value that is no JSON is text. Raises `ConfigError`."""
    bad = [
        Mistake("--set", pair, "not of the form KEY=VALUE", "e.g. --set seed=1") for pair in pairs if "=" not in pair
    ]
    if bad:
        raise ConfigError(bad)
    return {key: _value(text) for key, _, text in (pair.partition("=") for pair in pairs)}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 with the error's text, or 128 + the signal that stopped it."""
    parser = argparse.ArgumentParser(prog="make quickstart", description=__doc__)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting, e.g. optimizer.lr=0"
    )
    options = parser.parse_args(arguments)
    os.chdir(ROOT)
    try:
        quickstart(parse_overrides(options.set), Console(highlight=False))
    except (ConfigError, ServiceError, RunFailed) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
