"""Which Prefect server and MLflow store are meant: those that the environment names, else local ones in .drgrpo."""

import fcntl
import os
import secrets
import shlex
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

AUTH = "prefect-auth"
"""File with the login of the local server."""


@dataclass(frozen=True)
class Environment:
    """Addresses, and the variables that make a process use them.

    Attributes:
        state_dir: Directory of logs, databases and the lock.
        api_url: Prefect's API.
        local: Whether that server is ours to start.
        port: Port of the local server.
        auth: Login of the local server, `user:password`; empty for another server.
        variables: Whole environment of a process that uses the server.
    """

    state_dir: Path
    api_url: str
    local: bool
    port: int
    auth: str
    variables: dict[str, str]

    @property
    def ui_url(self) -> str:
        """Prefect's UI."""
        return self.api_url.removesuffix("/api")

    @property
    def login(self) -> str:
        """Line that tells what the UI asks for, once in each browser; empty where the server is not ours."""
        return f"Login     {self.auth}\n" if self.auth else ""

    @property
    def exports(self) -> str:
        """Lines for a shell whose commands are to use the server; not with the secret itself: a shell has a history."""
        file = shlex.quote(str(self.state_dir / AUTH))
        auth = f"export PREFECT_API_AUTH_STRING=$(cat {file})\n" if self.auth else ""
        return f"export PREFECT_API_URL={self.api_url}\n{auth}"


def read_environment(environ: Mapping[str, str] = os.environ, *, state_dir: Path = ROOT / ".drgrpo") -> Environment:
    """The services that `environ` means. Raises `ServiceError` for a port that is none.

    A local server keeps its files under `state_dir`, so `~/.prefect` stays as it is, and serves only those who can read
    `state_dir / AUTH`, which is made if there is none. Other variables that are set are kept; an empty address counts
    as none, because Prefect fails on it.
    """
    port = _port(environ.get("PREFECT_SERVER_API_PORT") or "4200")
    named = environ.get("PREFECT_API_URL", "")
    kept = {name: value for name, value in environ.items() if name != "PREFECT_API_URL"}
    path = os.pathsep.join(filter(None, [str(ROOT), environ.get("PYTHONPATH", "")]))
    variables = {**DEFAULTS, **kept, "PYTHONPATH": path}
    if named:
        return Environment(state_dir, named, False, port, "", {**variables, "PREFECT_API_URL": named})
    url, auth = f"http://127.0.0.1:{port}/api", _own_auth(state_dir / AUTH)
    variables |= {"PREFECT_API_URL": url, "PREFECT_HOME": str(state_dir / "prefect")}
    variables |= {"PREFECT_SERVER_API_AUTH_STRING": auth, "PREFECT_API_AUTH_STRING": auth}
    return Environment(state_dir, url, True, port, auth, variables)


def _own_auth(path: Path) -> str:
    """The text of the file, which its owner alone can read; a random one is written if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # two commands may want one at the same time
        auth = file.read().strip()
        if not auth:
            auth = f"drgrpo:{secrets.token_hex(16)}"
            file.write(f"{auth}\n")
        return auth


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
