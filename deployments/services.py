"""The services of one clone: a Prefect server, a worker, on request MLflow's UI. All end with this process."""

import fcntl
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import IO

from deployments.environment import Environment, mlflow_port
from deployments.service import Service, ServiceError, answers, check_port
from drgrpo.redaction import mask
from drgrpo.settings import Settings

START_TIMEOUT_S = 180.0
_WORKER = "prefect-worker"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Services:
    """Services that were started by this process.

    Args:
        environment: Which Prefect server is meant.
        settings: Names the MLflow store.
    """

    def __init__(self, environment: Environment, settings: Settings) -> None:
        self.environment, self.settings = environment, settings
        self._started: list[Service] = []

    def start_server(self) -> None:
        """Start the local Prefect server, unless the environment names one; raises `ServiceError`."""
        health = f"{self.environment.api_url}/health"
        if not self.environment.local:
            if not answers(health):
                remedy = "start it, or unset PREFECT_API_URL to have a local one"
                raise ServiceError(f"PREFECT_API_URL = {mask(self.environment.api_url)}: no answer; {remedy}")
            return
        port = self.environment.port
        remedy = "stop what uses it, choose another with PREFECT_SERVER_API_PORT, or name its server: PREFECT_API_URL"
        check_port("Prefect's server", port, remedy)
        options = ["--host", "127.0.0.1", "--port", str(port), "--analytics-off"]
        server = self._start("prefect-server", ["-m", "prefect", "server", "start", *options])
        server.wait_until_up(health, START_TIMEOUT_S)

    def start_worker(self) -> None:
        """Make the work pool and start a worker for it, one run at a time."""
        from deployments import server  # Prefect reads its environment when it is imported

        server.ensure_pool()
        if self.environment.local:
            server.close_abandoned_runs()
        self._start(_WORKER, ["-m", "prefect", "worker", "start", "--pool", server.POOL, "--limit", "1"])

    def start_mlflow_ui(self) -> str:
        """Start MLflow's UI on a local store; returns its address, or that of the store if it is a server's."""
        store = self.settings.mlflow_tracking_uri
        if store.startswith(("http://", "https://", "databricks")):
            return mask(store)
        port = mlflow_port(self.settings.mlflow_ui_url)
        remedy = "stop what uses it, or choose another with DRGRPO_MLFLOW_UI_URL=http://127.0.0.1:<port>"
        check_port("MLflow's UI", port, remedy)
        artifacts = self.environment.state_dir / "mlflow-artifacts"
        options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--no-serve-artifacts"]
        # Not as an argument: everyone on the machine can read those, and a database's URI may hold its password.
        stores = {"MLFLOW_BACKEND_STORE_URI": store, "MLFLOW_DEFAULT_ARTIFACT_ROOT": artifacts.as_uri()}
        ui = self._start("mlflow-ui", ["-m", "mlflow", "server", *options], stores)
        ui.wait_until_up(f"http://127.0.0.1:{port}/health", START_TIMEOUT_S)
        return f"http://127.0.0.1:{port}"

    def check(self) -> None:
        """Raise `ServiceError` if a service has ended."""
        for service in self._started:
            service.check()

    def revive(self) -> list[str]:
        """Start again what has died; returns the names. Raises `ServiceError` for a service that cannot run."""
        died = [service for service in self._started if service.has_died()]
        for service in died:
            if service.name == _WORKER and self.environment.local:
                from deployments import server

                server.close_abandoned_runs()  # its runs ended with it
            service.start()
        return [service.name for service in died]

    def stop(self) -> None:
        """End all services, the last started first: runs can still tell the server of their end."""
        while self._started:
            self._started.pop().stop()

    def _start(self, name: str, arguments: list[str], variables: Mapping[str, str] = MappingProxyType({})) -> Service:
        logs = self.environment.state_dir / "logs"
        self._started.append(Service(name, arguments, {**self.environment.variables, **variables}, logs))
        return self._started[-1]


@contextmanager
def running_services(environment: Environment, settings: Settings, *, purpose: str) -> Iterator[Services]:
    """Services that end with the block; SIGINT, SIGTERM and SIGHUP leave it by `SystemExit`.

    Sets the process's own environment to what the services have. Raises `ServiceError` when the clone's services run
    already, so that nobody stops what another one uses.
    """
    os.environ.update(environment.variables)
    for number in _SIGNALS:
        signal.signal(number, _leave)
    with _hold(environment, purpose):
        services = Services(environment, settings)
        try:
            yield services
        finally:
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            services.stop()


def served(environment: Environment) -> bool:
    """Whether `make serve` of this clone is running with the server that is meant."""
    holder = _holder(environment.state_dir)
    meant = holder.get("purpose") == "serve" and holder.get("api_url") == environment.api_url
    return meant and answers(f"{environment.api_url}/health")


@contextmanager
def _hold(environment: Environment, purpose: str) -> Iterator[None]:
    environment.state_dir.mkdir(parents=True, exist_ok=True)
    with (environment.state_dir / "services.lock").open("a+") as lock:
        if not _lock(lock):
            holder = _holder(environment.state_dir)
            raise ServiceError(
                f"the services of this directory run already: `{holder.get('purpose')}`, "
                f"process {holder.get('process')}; wait for it, or stop it"
            )
        lock.truncate(0)
        lock.write(json.dumps({"purpose": purpose, "process": os.getpid(), "api_url": environment.api_url}))
        lock.flush()
        yield


def _holder(state_dir: Path) -> dict[str, object]:
    """What the process that holds the lock wrote; empty when none does."""
    path = state_dir / "services.lock"
    if not path.exists():
        return {}
    with path.open() as lock:
        return {} if _lock(lock) else dict(json.loads(lock.read() or "{}"))


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _leave(number: int, _: object) -> None:
    print("\nStopping ...", file=sys.stderr)
    sys.exit(128 + number)
