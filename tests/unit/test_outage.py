"""MLflow's server is away, and comes back: a real one on loopback, killed and started again."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from drgrpo.tracking import MlflowAway, Tracker, deliver_spools
from drgrpo.tracking.spool import Spool
from drgrpo.tracking.store import MlflowStore
from tests.unit.tracked import free_port, points, start


class Server:
    """An MLflow server on loopback that keeps runs in `uri` and takes artifacts over HTTP into `artifacts`."""

    def __init__(self, uri: str, artifacts: Path) -> None:
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        place = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        stores = ["--backend-store-uri", uri, "--artifacts-destination", str(artifacts)]
        self._command = [sys.executable, "-m", "mlflow", "server", *place, *stores]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self._process = subprocess.Popen(self._command, start_new_session=True, env=environment)
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.address}/health", timeout=1):
                    return
            except OSError:
                time.sleep(0.2)
        raise TimeoutError(self.address)

    def kill(self) -> None:
        """kill -9, also of its worker."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(30)
            self._process = None


@pytest.fixture
def server(uri: str, tmp_path: Path) -> Iterator[Server]:
    """Not running yet."""
    server = Server(uri, tmp_path / "uploaded")
    yield server
    server.kill()


def log_files(tracker: Tracker, folder: Path, name: str) -> None:
    """A table, a plot and a folder."""
    plot, results = folder / f"{name}.png", folder / name
    plot.write_text(f"plot {name}")
    results.mkdir()
    (results / "seed.json").write_text(name)
    tracker.log_table([{"name": name}], f"samples/{name}.json")
    tracker.log_artifact(plot, "plots")
    tracker.log_artifact(results, f"results/{name}")


@pytest.mark.parametrize(
    "outage_s", [0.0, pytest.param(620.0, marks=[pytest.mark.long, pytest.mark.timeout(1200)])], ids=["short", "long"]
)
def test_a_run_logs_and_starts_again_in_an_outage_and_everything_arrives_once(
    uri: str, tmp_path: Path, server: Server, outage_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    server.start()
    tracker = start(server.address, tmp_path, artifact_location=None)
    run_id = tracker.run_id
    tracker.log_metrics({"a": 0.0}, 0)
    log_files(tracker, tmp_path, "before")
    assert tracker.flush(60) == 0

    server.kill()
    tracker.log_metrics({"a": 1.0}, 1)
    log_files(tracker, tmp_path, "during")
    tracker.log_policy(tmp_path, 1, {"a": 1.0})
    assert tracker.finish("FAILED") == 6
    caplog.clear()
    tracker = start(server.address, tmp_path, run_id, params={"late": 1}, artifact_location=None)
    assert [r.levelno for r in caplog.records if "MLflow is away" in r.message] == [logging.WARNING]
    for step in range(3):
        tracker.log_metrics({"a": step + 0.5}, step)  # the replay has other values; the first that were logged count
    log_files(tracker, tmp_path, "later")
    time.sleep(outage_s)
    assert tracker._spool.num_pending == 13 and points(uri, run_id, "a") == [(0, 0.0)]

    server.start()
    deadline = time.monotonic() + 120
    while tracker._spool.num_pending and time.monotonic() < deadline:
        time.sleep(0.2)
    assert tracker.finish() == 0
    assert points(uri, run_id, "a") == [(0, 0.0), (1, 1.0), (2, 2.5)]
    run = MlflowClient(uri).get_run(run_id)
    assert run.info.status == "FINISHED" and run.data.params == {"late": "1"}
    listed = json.loads(run.data.tags["mlflow.loggedArtifacts"])
    assert [entry["path"] for entry in listed] == [f"samples/{name}.json" for name in ("before", "during", "later")]
    for name in ("before", "during", "later"):
        (table,) = (tmp_path / "uploaded").rglob(f"samples/{name}.json")
        assert json.loads(table.read_text())["data"] == [[name]]
        assert (table.parents[1] / "plots" / f"{name}.png").read_text() == f"plot {name}"
        assert (table.parents[1] / "results" / name / "seed.json").read_text() == name
    assert list((tmp_path / "spool").glob("*.refused")) == []


def test_a_new_run_and_one_without_its_journal_need_mlflow(uri: str, tmp_path: Path, server: Server) -> None:
    with pytest.raises(MlflowAway, match="the experiment 'quickstart'"):
        start(server.address, tmp_path)
    known = start(uri, tmp_path)
    known.finish("FAILED")
    with pytest.raises(MlflowAway, match=f"the run {known.run_id}"):
        start(server.address, tmp_path / "elsewhere", known.run_id)


def test_points_logged_while_the_server_is_away_are_delivered_by_hand_once_it_is_back(
    uri: str, tmp_path: Path, server: Server
) -> None:
    run_id = start(uri, tmp_path).run_id
    journal = tmp_path / "away" / f"{run_id}.jsonl"
    spool = Spool(journal, MlflowStore(server.address).apply)
    started = time.monotonic()
    for step in range(5):
        spool.append(
            {"kind": "metrics", "run_id": run_id, "metrics": {"a": step}, "step": step, "timestamp": 1000 + step}
        )
    assert time.monotonic() - started < 2.0
    assert spool.close(timeout_s=30) == 5 and time.monotonic() - started < 30
    assert points(uri, run_id, "a") == []
    server.start()
    assert deliver_spools(server.address, journal.parent) == 0
    assert points(uri, run_id, "a") == [(step, step) for step in range(5)]
