"""Opening a comparison: lock its directory, start or continue its MLflow run, the parent of the arms' runs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from drgrpo.comparison.comparison import Comparison
from drgrpo.comparison.plan import ArmRun
from drgrpo.config.errors import ConfigError, Mistake
from drgrpo.config.flat import Scalar
from drgrpo.config.output_lock import hold_output_directory
from drgrpo.config.overrides import flatten
from drgrpo.durable import replace_json
from drgrpo.run_id import check_run_id
from drgrpo.settings import Settings
from drgrpo.tracking import Tracker

_NAME = "comparison.json"


@contextmanager
def open_comparison(
    runs: Sequence[ArmRun],
    settings: Settings,
    run_id: str,
    *,
    experiment: str,
    name: str,
    tags: Mapping[str, str],
    owner: str = "",
) -> Iterator[Comparison]:
    """Start or continue comparison `run_id` in flow run `owner`; its MLflow run ends with the block.

    Raises ConfigError when another process holds the directory.
    """
    directory = settings.runs_dir / run_id
    with hold_output_directory(directory, owner):
        tracker = _start_tracker(runs, settings, run_id, experiment, name, {"drgrpo.comparison": run_id, **tags})
        status: Literal["FINISHED", "FAILED", "KILLED"] = "KILLED"
        try:
            values = {"mlflow_run_id": tracker.run_id, "runs": [run.run_id for run in runs]}
            replace_json(directory / _NAME, values)
            yield Comparison(runs, settings, run_id, experiment=experiment, name=name, tracker=tracker)
            status = "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            tracker.finish(status)


def check_origin(run_id: str, settings: Settings) -> str:
    """The id of a comparison to go on with. Raises ConfigError when there is none of that id."""
    path = settings.runs_dir / check_run_id(run_id, field="resume_from") / _NAME
    if not path.exists():
        problem, remedy = f"there is no comparison in {path.parent}", "give the flow run's id of the comparison"
        raise ConfigError([Mistake("resume_from", run_id, problem, remedy)])
    return run_id


def is_tracked(run_id: str, settings: Settings) -> bool:
    """Whether the comparison is in MLflow already: then it goes on while that is away."""
    return (settings.runs_dir / run_id / _NAME).exists()


def _start_tracker(
    runs: Sequence[ArmRun],
    settings: Settings,
    run_id: str,
    experiment: str,
    name: str,
    tags: Mapping[str, str],
) -> Tracker:
    path = settings.runs_dir / run_id / _NAME
    known = json.loads(path.read_text())["mlflow_run_id"] if path.exists() else None
    params: dict[str, Any] = {
        "arms": {run.arm: dict(run.overrides) or "as configured" for run in runs},
        "seeds": sorted({run.seed for run in runs}),
        **_shared(runs),
    }
    return Tracker.start(
        settings.mlflow_tracking_uri,
        experiment,
        name,
        own_id=run_id,
        params=params,
        tags=tags,
        run_id=known,
        spool_dir=path.parent / "spool",
        artifact_location=settings.artifact_location,
        system_metrics=False,
    )


def _shared(runs: Sequence[ArmRun]) -> dict[str, Scalar]:
    """The settings that all runs have in common."""
    configs = [flatten(run.config) for run in runs]
    return {path: value for path, value in configs[0].items() if all(other.get(path) == value for other in configs)}
