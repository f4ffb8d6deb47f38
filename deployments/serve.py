"""`make serve`: Prefect with a worker and both UIs on loopback, until Ctrl-C."""

import os
import sys
import time

from rich.console import Console

from deployments.environment import read_environment
from deployments.service import ServiceError
from deployments.services import running_services
from deployments.steps import ROOT
from drgrpo.config.errors import ConfigError
from drgrpo.settings import load_settings


def serve(console: Console) -> None:
    """Start everything, deploy everything, and stay. What dies is started again.

    Raises `ServiceError` when a service cannot run.
    """
    settings = load_settings()
    environment = read_environment(state_dir=settings.root / ".drgrpo")
    with running_services(environment, settings, purpose="serve") as services:
        console.print("Starting Prefect and MLflow ...")
        services.start_server()
        mlflow = services.start_mlflow_ui()
        services.start_worker()
        from deployments import server  # Prefect reads its environment when it is imported

        names = server.deploy_all()
        console.print(f"Prefect   {environment.ui_url}\n{environment.login}MLflow    {mlflow}", soft_wrap=True)
        console.print(f"Deployed  {', '.join(names)}\n\nIn another terminal:\n", soft_wrap=True)
        console.print(environment.exports, soft_wrap=True)
        console.print("Ctrl-C stops everything.")
        while True:
            time.sleep(1)
            for name in services.revive():
                console.print(f"{name} had died and was started again; its log is in {environment.state_dir / 'logs'}")


def main() -> int:
    """Exit status: 1 with the error's text, or 128 + the signal that stopped it."""
    os.chdir(ROOT)
    try:
        serve(Console(highlight=False))
    except (ServiceError, ConfigError) as error:
        print(error, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
