"""The tracked run, as the flow process holds it."""

import logging
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from drgrpo.redaction import is_secret, mask
from drgrpo.tracking.context import environment_tags, finite_metrics, flat_params
from drgrpo.tracking.spool import Event, Spool, read_events
from drgrpo.tracking.store import MlflowAway, MlflowStore, json_table

logger = logging.getLogger(__name__)

_WAIT_S = 120.0  # for a delivery by hand, which takes a minute at most


class Tracker:
    """One MLflow run, written through a spool on disk: every `log_*` call costs a synced write and never waits.

    Attributes:
        run_id: MLflow's id of the run; keep it, `start` continues the run with it.
        num_skipped: Points that were not logged because the run has them already.
    """

    def __init__(self, store: MlflowStore, run_id: str, spool_dir: Path) -> None:
        self.run_id, self.num_skipped = run_id, 0
        self._store = store
        self._files = spool_dir / f"{run_id}.files"
        journal = spool_dir / f"{run_id}.jsonl"
        # The journal first: what is delivered between the two looks is in both, and not in neither.
        self._last_step = _last_steps(read_events(journal), store, run_id)
        self._spool = Spool(journal, store.apply, wait_s=_WAIT_S)

    @classmethod
    def start(
        cls,
        uri: str,
        experiment: str,
        run_name: str,
        *,
        own_id: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        run_id: str | None = None,
        spool_dir: Path,
        artifact_location: str | None = None,
        system_metrics: bool = True,
    ) -> Self:
        """Make a run, or continue the run `run_id`: its parameters and points stay.

        A run that was started with the same `spool_dir` before also goes on while MLflow is away.

        Args:
            uri: Tracking URI of a server or a database.
            experiment: Name, made when missing; `artifact_location` is its artifacts' place, else the server's choice.
            own_id: Our id of the run, the tag `drgrpo.run_id`: by it the run is found when a kill came before `run_id`
                was kept.
            params: The resolved config; nested keys become dotted, secrets are left out or masked.
            tags: `prefect.flow_run_url` also becomes a link in the run's description.
            spool_dir: Folder on a disk that outlives the process; a resumed run needs the same one.

        Raises:
            TrackingError: MLflow does not know the experiment or the run, or is out of reach (`MlflowAway`).
            ConfigError: Another process delivers the spool.
        """
        store = MlflowStore(uri, system_metrics=system_metrics)
        if run_id is None:
            run_id = store.run_id(own_id, store.experiment_id(experiment, artifact_location), run_name)
        tracker = cls(store, run_id, spool_dir)
        try:
            tracker._put("status", status="RUNNING", timestamp=_now_ms())
            tracker._put("params", params=flat_params(params))
            tracker.set_tags(environment_tags() | _description(tags) | dict(tags))
        except OSError:
            tracker._spool.close(0.0)
            raise
        return tracker

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """One batch of points.

        A key whose newest step is `step` or later is skipped (a replay), and a value that is not finite becomes
        `nonfinite/<key>`.
        """
        finite = finite_metrics(metrics)
        new = {key: value for key, value in finite.items() if step > self._last_step.get(key, -1)}
        self.num_skipped += len(finite) - len(new)
        if new:
            self._put("metrics", metrics=new, step=step, timestamp=_now_ms())
            self._last_step.update(dict.fromkeys(new, step))

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Upload a file or folder, which has to stay in place until it is delivered."""
        self._put("artifact", path=str(path.resolve()), folder=folder)

    def log_table(self, rows: list[dict[str, Any]], file: str) -> None:
        """Store rows as the artifact `file` (`.json`), shown as a table. Cells from a model: `report.samples_table`."""
        staged = self._stage(json_table(rows), file)
        self._put("table", path=str(staged), folder=_folder(file))

    def log_dataset(
        self,
        name: str,
        digest: str,
        source: str,
        num_rows: int,
        *,
        context: Literal["training", "evaluation"] = "training",
    ) -> None:
        """Name a dataset as an input of the run, by digest; no row is read."""
        shown = {"name": mask(name), "source": mask(source)}
        self._put("dataset", **shown, digest=digest, num_rows=num_rows, context=context)

    def log_policy(self, path: Path | str, step: int, metrics: Mapping[str, float]) -> None:
        """Record the policy at `path` (a Hugging Face directory) as a logged model by URI, linked with `metrics`.

        Nothing is uploaded. Logged twice for a step, the first stays.
        """
        uri = path if isinstance(path, str) and "://" in path else Path(path).resolve().as_uri()
        self._put("policy", uri=uri, step=step, metrics=finite_metrics(metrics), timestamp=_now_ms())

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run; secret keys are left out, secret values masked."""
        self._put("tags", tags={key: mask(str(value))[:5000] for key, value in tags.items() if not is_secret(key)})

    def flush(self, timeout_s: float = 10.0) -> int:
        """Deliver now; returns the number of events that could not be delivered."""
        return self._spool.flush(timeout_s)

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED", *, timeout_s: float = 10.0) -> int:
        """End the run after a last attempt to deliver; returns the number of events that stay in the spool."""
        try:
            self._put("status", status=status, timestamp=_now_ms())
        finally:  # also without room for it: the run may go on in this process
            num_pending = self._spool.close(timeout_s)
        if num_pending:
            self._store.stop_monitor()
            command = f"python -m drgrpo.tracking {mask(self._store.uri or '')} {self._files.parent}"
            logger.warning(
                "MLflow is out of reach: %d events are kept on disk. Deliver them with: %s", num_pending, command
            )
        else:
            shutil.rmtree(self._files, ignore_errors=True)
        if self._spool.num_refused:
            logger.warning("MLflow refused %d events, see %s.refused", self._spool.num_refused, self._spool.path)
        return num_pending

    def run_url(self, ui_url: str) -> str:
        """Address of the run in MLflow's UI."""
        return f"{mask(ui_url).rstrip('/')}/#/runs/{self.run_id}"

    def _put(self, kind: str, **arguments: Any) -> None:
        self._spool.append({"kind": kind, "run_id": self.run_id, **arguments})

    def _stage(self, text: str, file: str) -> Path:
        # The folder's name is unique, the file's name is the artifact's.
        folder = self._files / uuid.uuid4().hex
        folder.mkdir(parents=True)
        (folder / Path(file).name).write_text(text, encoding="utf-8")
        return folder / Path(file).name


def _last_steps(events: Iterable[Event], store: MlflowStore, run_id: str) -> dict[str, int]:
    """The newest step of every metric that is in MLflow or in the journal; of the journal alone while MLflow is away.

    Raises TrackingError when MLflow does not know the run, or is away and the journal has nothing of it.
    """
    points = [(key, event["step"]) for event in events if event.get("kind") == "metrics" for key in event["metrics"]]
    try:
        points += store.last_steps(run_id).items()
    except MlflowAway as error:
        if not events:
            raise
        logger.warning("MLflow is away (%s). The run goes on, and its events wait on disk.", error)
    newest: dict[str, int] = {}
    for key, step in points:
        newest[key] = max(step, newest.get(key, step))
    return newest


def _description(tags: Mapping[str, str]) -> dict[str, str]:
    url = tags.get("prefect.flow_run_url")
    return {"mlflow.note.content": f"[Prefect flow run]({url})"} if url else {}


def _folder(file: str) -> str:
    return str(Path(file).parent) if Path(file).parent != Path() else ""


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
