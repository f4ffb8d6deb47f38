"""Opening a run: lock its devices, find where it starts, open MLflow, start the engines."""

import logging
from asyncio import CancelledError
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from drgrpo.cluster.cluster import Cluster
from drgrpo.config import TrainConfig
from drgrpo.config.overrides import config_digest
from drgrpo.description import Description, check_recipe, read_description, write_description
from drgrpo.device_lock import hold_devices
from drgrpo.models import resolve_model
from drgrpo.notice import Notice
from drgrpo.run import Run
from drgrpo.run_id import check_run_id
from drgrpo.settings import Settings
from drgrpo.tracking import Tracker

logger = logging.getLogger(__name__)


@contextmanager
def open_run(
    config: TrainConfig,
    settings: Settings,
    run_id: str,
    *,
    experiment: str,
    name: str,
    tags: Mapping[str, str],
    train: bool = True,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[Run]:
    """Start or continue run `run_id`, whose directory the caller holds; its engines and MLflow run end with the block.

    Args:
        config: Checked configuration.
        settings: Of the machine.
        run_id: Names the run's directory.
        experiment: MLflow's experiment.
        name: MLflow's name of the run.
        tags: MLflow's tags.
        train: Without it there is no trainer, and the sampler keeps the model's own weights.
        is_cancelled: Whether a SIGTERM that arrived means that a person cancels the run.

    Raises ConfigError when the directory belongs to another configuration and when Ray does not give the devices, and
    TrackingError when MLflow does not answer for a new run.
    """
    directory = settings.runs_dir / check_run_id(run_id)
    with ExitStack() as stack:
        description = _described(directory, config)
        stack.enter_context(hold_devices(settings))
        tracker = _start_tracker(run_id, description, settings, experiment, name, _all_tags(description, tags))
        stack.push(lambda *error: _finish(tracker, error[1]))
        description = replace(description, mlflow_run_id=tracker.run_id)
        write_description(directory, description)
        model_path = resolve_model(config.model.path, revision=config.model.revision, cache_dir=settings.cache_dir)
        cluster = Cluster(config, settings, model_path=model_path, run_id=run_id, run_dir=directory, train=train)
        stack.callback(cluster.close)
        _log_data(tracker, cluster.data)
        # Without a trainer there is nothing to save.
        notice = stack.enter_context(Notice(settings.preemption_notice_s if train else 0.0, is_cancelled))
        run = Run(description, settings, run_id, name, tracker, cluster, notice)
        stack.push(lambda *error: _save_before_the_end(run, error[1]))
        try:
            yield run
        except Exception as error:
            cluster.raise_if_lost(error)
            raise


def _described(directory: Path, config: TrainConfig) -> Description:
    """The run that lies in `directory`, with its present configuration; a new one when there is none."""
    previous = read_description(directory)
    if previous is None:
        return Description(config, "")
    check_recipe(previous, config)
    return replace(previous, config=config)


def _all_tags(description: Description, tags: Mapping[str, str]) -> dict[str, str]:
    own = {"drgrpo.config_digest": config_digest(description.config)}
    if description.forked_from:
        parent = description.parent_mlflow_run_id
        own |= {"drgrpo.forked_from": description.forked_from, "mlflow.parentRunId": parent}
    return {**own, **tags}


def _start_tracker(
    run_id: str, description: Description, settings: Settings, experiment: str, name: str, tags: Mapping[str, str]
) -> Tracker:
    return Tracker.start(
        settings.mlflow_tracking_uri,
        experiment,
        name,
        own_id=run_id,
        params=description.config.model_dump(mode="json"),
        tags=tags,
        run_id=description.mlflow_run_id or None,
        # The spool of a run outlives its directory's process.
        spool_dir=settings.runs_dir / run_id / "spool",
        artifact_location=settings.artifact_location,
    )


def _finish(tracker: Tracker, error: BaseException | None) -> None:
    """End the MLflow run: an exception fails it, a signal or a cancellation kills it."""
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED"
    if error is not None:
        status = "KILLED" if _is_end(error) else "FAILED"
    tracker.finish(status)


def _save_before_the_end(run: Run, error: BaseException | None) -> None:
    """With notice of the end, save what is trained so far: less to replay. What goes wrong then is told, and the end
    stays what it was, so that Prefect still sees a run that was stopped and not one that failed.
    """
    if run.notice.is_given and error is not None and _is_end(error):
        try:
            run.save_now()
        except Exception:
            logger.exception("no checkpoint could be saved before the end; the updates since the last are replayed")


def _is_end(error: BaseException) -> bool:
    """Whether a signal is behind an error: one that hits Prefect while it prepares a task comes out as another's."""
    if not isinstance(error, Exception):
        return True
    behind = error.__context__
    # A request that takes too long is cancelled, and its error comes up in the handling of that: that is no signal.
    while isinstance(behind, (Exception, GeneratorExit, CancelledError)):
        behind = behind.__context__
    return behind is not None


def _log_data(tracker: Tracker, data: Mapping[str, Any]) -> None:
    contexts: dict[str, Literal["training", "evaluation"]] = {"train": "training", "evaluation": "evaluation"}
    for key, context in contexts.items():
        if split := data.get(key):
            tracker.log_dataset(
                split["source"], split["digest"], split["source"], split["num_problems"], context=context
            )
    tracker.log_metrics({f"data/dropped_{key}": value for key, value in data["dropped"].items()}, 0)
