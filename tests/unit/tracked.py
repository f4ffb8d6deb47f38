"""Runs for the tests of tracking, and what an MLflow store says of them."""

import socket
from pathlib import Path

from mlflow.tracking import MlflowClient

from drgrpo.tracking import Tracker


def start(uri: str, tmp_path: Path, run_id: str | None = None, **changes: object) -> Tracker:
    """Run `run-1` in the experiment `quickstart`; artifacts lie in `tmp_path`."""
    arguments = {
        "own_id": "run-1",
        "params": {},
        "tags": {},
        "system_metrics": False,
        "artifact_location": (tmp_path / "artifacts").as_uri(),
    } | changes
    return Tracker.start(uri, "quickstart", "brave-run", run_id=run_id, spool_dir=tmp_path / "spool", **arguments)  # type: ignore[arg-type]


def points(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    """(step, value) of every point of a metric."""
    return [(metric.step, metric.value) for metric in MlflowClient(uri).get_metric_history(run_id, key)]


def free_port() -> int:
    """A port of loopback where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
