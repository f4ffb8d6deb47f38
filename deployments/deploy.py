"""`make deploy`: everything in prefect.yaml, to the server that PREFECT_API_URL names or `make serve` runs."""

import os
import sys

from deployments.environment import read_environment
from deployments.service import ServiceError, answers
from deployments.steps import ROOT
from drgrpo.config.errors import ConfigError
from drgrpo.settings import load_settings


def deploy() -> list[str]:
    """Deploy; returns the names. Raises `ServiceError` when no server answers or a deployment fails."""
    environment = read_environment(state_dir=load_settings().root / ".drgrpo")
    if not answers(f"{environment.api_url}/health"):
        remedy = "run `make serve` in another terminal, or name a server with PREFECT_API_URL"
        raise ServiceError(f"no Prefect server answers at {environment.api_url}: {remedy}")
    os.environ.update(environment.variables)
    from deployments import server  # Prefect reads its environment when it is imported

    return server.deploy_all()


def main() -> int:
    """Exit status: 0, or 1 with the error's text."""
    os.chdir(ROOT)
    try:
        print("\n".join(deploy()))
    except (ServiceError, ConfigError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
