"""Which Prefect server and MLflow store are meant: those that the environment names, else local ones in .drgrpo."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from deployments.service import ServiceError
from deployments.steps import ROOT

DEFAULTS = {
    "PREFECT_WORKER_QUERY_SECONDS": "2",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    # Written one by one, the server's records of task runs collide with its other writes to SQLite; the client then
    # waits two seconds at every task.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "2",
    # Waits of 2, 4, 8 ... seconds: a run outlives a server that is away for a quarter of an hour.
    "PREFECT_CLIENT_MAX_RETRIES": "9",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven processes and 1.7 GB that we have no use for
}
"""Variables that are set unless the environment sets them: nothing reports to anyone, and nothing waits."""


@dataclass(frozen=True)
class Environment:
    """Addresses, and the variables that make a process use them.

    Attributes:
        state_dir: Directory of logs, databases and the lock.
        api_url: Prefect's API.
        local: Whether that server is ours to start.
        port: Port of the local server.
        variables: Whole environment of a process that uses the server.
    """

    state_dir: Path
    api_url: str
    local: bool
    port: int
    variables: dict[str, str]

    @property
    def ui_url(self) -> str:
        """Prefect's UI."""
        return self.api_url.removesuffix("/api")


def read_environment(environ: Mapping[str, str] = os.environ, *, state_dir: Path = ROOT / ".drgrpo") -> Environment:
    """The services that `environ` means. Raises `ServiceError` for a port that is none.

    A local server keeps its files under `state_dir`, so `~/.prefect` stays as it is. Variables that are set are kept;
    an empty address counts as none, because Prefect fails on it.
    """
    port = _port(environ.get("PREFECT_SERVER_API_PORT") or "4200")
    named = environ.get("PREFECT_API_URL", "")
    kept = {name: value for name, value in environ.items() if name != "PREFECT_API_URL"}
    path = os.pathsep.join(filter(None, [str(ROOT), environ.get("PYTHONPATH", "")]))
    variables = {**DEFAULTS, **kept, "PYTHONPATH": path}
    if named:
        return Environment(state_dir, named, False, port, {**variables, "PREFECT_API_URL": named})
    url = f"http://127.0.0.1:{port}/api"
    variables |= {"PREFECT_API_URL": url, "PREFECT_HOME": str(state_dir / "prefect")}
    return Environment(state_dir, url, True, port, variables)


def mlflow_port(ui_url: str) -> int:
    """Port of MLflow's UI. Raises `ServiceError` for an address that is not on loopback."""
    address = urlsplit(ui_url)
    if address.hostname not in ("127.0.0.1", "localhost"):
        raise ServiceError(
            f"DRGRPO_MLFLOW_UI_URL = {ui_url}: `make serve` serves MLflow's UI on loopback only; unset it, "
            "or name the server itself with MLFLOW_TRACKING_URI=http://..."
        )
    return address.port or 5000


def _port(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) < 65536):
        raise ServiceError(f"PREFECT_SERVER_API_PORT = {text!r}: not a port; allowed: 1 to 65535")
    return int(text)
