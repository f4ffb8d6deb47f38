"""What an event of a run becomes in MLflow. Every delivery is idempotent, because the spool may repeat one."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient
from requests import HTTPError
from sqlalchemy.exc import SQLAlchemyError

from drgrpo.redaction import mask
from drgrpo.tracking.policy import record_policy
from drgrpo.tracking.spool import Event, Unreachable

_TABLES_TAG = "mlflow.loggedArtifacts"  # where MLflow's UI looks for the artifacts that it shows as tables
_REFUSALS = frozenset({400, 404, 409, 413, 422})
_TERMINAL = frozenset({"FINISHED", "FAILED", "KILLED"})
_RUN_TAG = "drgrpo.run_id"
_FAILURES = (MlflowException, OSError, SQLAlchemyError)


class TrackingError(RuntimeError):
    """MLflow is out of reach, or does not have what it was asked for."""


class MlflowAway(TrackingError):
    """MLflow does not answer, or answers with a failure of its own: it may come back."""


def bound_requests() -> None:
    """Keep one request to MLflow under some 20 s; its own defaults retry for about four minutes."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")


class MlflowStore:
    """Runs in one MLflow store (a server's or a database's URI).

    Args:
        uri: Tracking URI; empty means MLflow's own default (`MLFLOW_TRACKING_URI`). The login in a server's URI goes to
            the variables that MLflow's client reads, because its errors and warnings show the URI.
        system_metrics: Sample CPU, memory, disk, network and, with `nvidia-ml-py`, GPUs while a run is RUNNING.
    """

    def __init__(self, uri: str = "", *, system_metrics: bool = False) -> None:
        bound_requests()
        self.uri = _without_login(uri) or None
        self._system_metrics = system_metrics
        self._monitor: SystemMetricsMonitor | None = None

    @cached_property
    def client(self) -> MlflowClient:
        """Made at the first request, because a database has to answer for it."""
        return MlflowClient(self.uri)

    def ping(self) -> None:
        """Ask for one experiment. Raises: TrackingError."""
        with _named("the experiments"):
            self.client.search_experiments(max_results=1)

    def experiment_id(self, name: str, artifact_location: str | None) -> str:
        """Id of the experiment, made when it is missing. Raises: TrackingError, for a deleted one as well."""
        with _named(f"the experiment {name!r}"):
            if self.client.get_experiment_by_name(name) is None:
                # Another run may make it in between.
                with contextlib.suppress(MlflowException):
                    self.client.create_experiment(name, artifact_location=artifact_location)
            found = self.client.get_experiment_by_name(name)
        if found is None or found.lifecycle_stage != "active":
            raise TrackingError(
                f"the experiment {name!r} is deleted: restore it (`mlflow experiments restore`) or rename"
            )
        return str(found.experiment_id)

    def run_id(self, own_id: str, experiment_id: str, run_name: str) -> str:
        """Id of the run with the tag `own_id`, made when there is none: a kill may have come before it was noted."""
        with _named(f"the run {run_name!r}"):
            found = self.client.search_runs([experiment_id], f"tags.`{_RUN_TAG}` = '{own_id}'", max_results=1)
            if not found:
                found = [self.client.create_run(experiment_id, run_name=run_name, tags={_RUN_TAG: own_id})]
            return str(found[0].info.run_id)

    def tags(self, run_id: str) -> dict[str, str]:
        """Tags of a run."""
        with _named(f"the run {run_id}"):
            return dict(self.client.get_run(run_id).data.tags)

    def last_steps(self, run_id: str) -> dict[str, int]:
        """The newest step of every metric of a run but the system metrics, which count their own steps."""
        with _named(f"the run {run_id}"):
            metrics = self.client.get_run(run_id).data.to_proto().metrics
        return {metric.key: metric.step for metric in metrics if not metric.key.startswith("system/")}

    def apply(self, event: Event) -> None:
        """Deliver one event: `{"kind": ..., "run_id": ..., ...}` with the arguments of the method of that kind.

        Raises:
            Unreachable: MLflow does not answer, or answers with a failure of its own.
            MlflowException: MLflow refuses the event itself.
        """
        arguments = {key: value for key, value in event.items() if key != "kind"}
        try:
            getattr(self, f"put_{event['kind']}")(**arguments)
        except _FAILURES as error:
            if _is_outage(error):
                raise Unreachable(mask(str(error))) from error
            raise

    def put_metrics(self, run_id: str, metrics: Mapping[str, float], step: int, timestamp: int) -> None:
        """One batch; MLflow keeps one of two points that are equal in key, step, timestamp (ms) and value."""
        self.client.log_batch(run_id, metrics=[Metric(key, value, timestamp, step) for key, value in metrics.items()])
        if self._monitor is not None and not self._monitor._process.is_alive():
            self._start_monitor(run_id)  # MLflow's monitor ends at the first request that fails

    def put_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Parameters that the run does not have yet: MLflow refuses a changed one."""
        known = self.client.get_run(run_id).data.params
        missing = [Param(key, value) for key, value in params.items() if key not in known]
        for first in range(0, len(missing), 100):
            self.client.log_batch(run_id, params=missing[first : first + 100])

    def put_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def put_artifact(self, run_id: str, path: str, folder: str) -> None:
        """Upload a file or a folder."""
        if Path(path).is_dir():
            self.client.log_artifacts(run_id, path, folder or None)
        else:
            self.client.log_artifact(run_id, path, folder or None)

    def put_table(self, run_id: str, path: str, folder: str) -> None:
        """Upload a JSON table and list it for MLflow's table view while the list fits in a tag."""
        self.put_artifact(run_id, path, folder)
        entry = {"path": f"{folder}/{Path(path).name}".lstrip("/"), "type": "table"}
        listed = json.loads(self.client.get_run(run_id).data.tags.get(_TABLES_TAG, "[]"))
        tag = json.dumps([*listed, entry])
        if entry not in listed and len(tag) <= 5000:
            self.client.set_tag(run_id, _TABLES_TAG, tag)

    def put_dataset(self, run_id: str, name: str, digest: str, source: str, num_rows: int, context: str) -> None:
        """A dataset as an input of the run, without reading a row of it."""
        profile = json.dumps({"num_rows": num_rows, "digest": digest})
        place = "local" if source.startswith(("/", "file:")) else "external"
        # MLflow's column holds 36 characters; the whole digest is in the profile.
        dataset = Dataset(name, digest[:32], place, json.dumps({"uri": source}), profile=profile)
        self.client.log_inputs(run_id, datasets=[DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])

    def put_policy(self, run_id: str, uri: str, step: int, metrics: Mapping[str, float], timestamp: int) -> None:
        """The policy as a logged model by URI, linked with its metrics; made once per run and step."""
        record_policy(self.client, run_id, uri, step, metrics, timestamp)

    def put_status(self, run_id: str, status: str, timestamp: int) -> None:
        """RUNNING starts the sampling of system metrics, a terminal status ends it and the run."""
        if status in _TERMINAL:
            self.stop_monitor()
            self.client.set_terminated(run_id, status, end_time=timestamp)
        else:
            self.client.update_run(run_id, status=status)
            if self._system_metrics:
                self._start_monitor(run_id)

    def stop_monitor(self) -> None:
        """End the sampling of system metrics."""
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None

    def _start_monitor(self, run_id: str) -> None:
        self.stop_monitor()
        self._monitor = SystemMetricsMonitor(
            run_id, sampling_interval=5, samples_before_logging=3, resume_logging=True, tracking_uri=self.uri
        )
        self._monitor.start()


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        yield
    except _FAILURES as error:
        kind = MlflowAway if _is_outage(error) else TrackingError
        raise kind(mask(f"{what}: {error}")) from error


def _without_login(uri: str) -> str:
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.password is None:
        return uri
    for name, value in (("USERNAME", parts.username), ("PASSWORD", parts.password)):
        os.environ[f"MLFLOW_TRACKING_{name}"] = unquote(value or "")
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _is_outage(error: Exception) -> bool:
    if isinstance(error, MlflowException):
        return error.get_http_status_code() not in _REFUSALS
    if isinstance(error, HTTPError) and error.response is not None:  # of an artifact
        return error.response.status_code not in _REFUSALS
    return not isinstance(error, FileNotFoundError)


def json_table(rows: list[dict[str, Any]]) -> str:
    """Rows in the JSON layout that MLflow's table view reads."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return json.dumps({"columns": columns, "data": [[row.get(key) for key in columns] for row in rows]})
