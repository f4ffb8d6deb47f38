"""Prefect and MLflow of a measurement: as `make serve` sets them up, with nothing left behind."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def local_services(root: Path) -> Iterator[None]:
    """A Prefect server as `make serve` starts it, unless the environment names one; all state under `root`.

    The process gets the environment of a deployed run, so that the figures hold no waits that a deployment has not.
    Enter it before Prefect is imported.
    """
    from deployments.environment import read_environment
    from deployments.services import Services
    from drgrpo.settings import Settings

    os.environ.setdefault("PREFECT_SERVER_API_PORT", str(free_port()))
    environment = read_environment(state_dir=root / ".drgrpo")
    os.environ |= {**environment.variables, "DRGRPO_ROOT": str(root)}
    services = Services(environment, Settings(root=root))
    try:
        services.start_server()
        yield
    finally:
        _send_logs()
        services.stop()


def free_port() -> int:
    """A port of loopback that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _send_logs() -> None:
    """Send what Prefect has still to log: without a server it would try for a minute at the process's end."""
    from prefect.logging.handlers import APILogHandler

    APILogHandler().flush()
