"""Where a run begins, and how it goes on after an engine was lost or a health gate asked for a rollback."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from drgrpo.cluster.cluster import EngineLost
from drgrpo.config import TrainConfig
from drgrpo.config.errors import ConfigError
from drgrpo.config.output_lock import check_output_directory
from drgrpo.health import HealthStop, RollBack
from drgrpo.opening import open_run
from drgrpo.origin import fork_run, parse_origin
from drgrpo.report import read_history
from drgrpo.rollback import newest_run, roll_back
from drgrpo.run import Run
from drgrpo.settings import Settings
from flows.cancellation import announced, is_cancelled
from flows.identity import Identity, identity

_DELAY_S = 2.0
_NAME = "restarts.json"


def beginning(resume_from: str, config: TrainConfig, settings: Settings) -> Identity:
    """Which run a flow is to train: its own, the one that `resume_from` names, or a fork of that, which is made here.

    Raises ConfigError for a wrong `resume_from`.
    """
    origin = parse_origin(resume_from, settings.runs_dir)
    who = identity(origin)
    if origin and origin.step is not None:
        fork_run(origin, who["run_id"], config, settings.runs_dir)
    return who


def to_the_end(
    loop: Callable[[Run], dict[str, Any]], config: TrainConfig, settings: Settings, who: Identity
) -> dict[str, Any]:
    """Train run `who` by `loop` from where its files end; returns its summary.

    It goes on from there when an engine was lost, and from an earlier checkpoint when a health gate wants it to.
    """
    _wait_for_twin(who["run_id"], settings.runs_dir)
    with Restarts(settings.max_restarts, settings.runs_dir / who["run_id"]) as restarts:
        while True:
            who["run_id"], config = newest_run(who["run_id"], config, settings.runs_dir)
            try:
                with open_run(config, settings, **who, is_cancelled=is_cancelled) as run, announced(run.notice):
                    return loop(run)
            except EngineLost as error:
                restarts.admit(error, settings.runs_dir / who["run_id"])
            except RollBack as rollback:
                go_back(rollback, run)


def _wait_for_twin(run_id: str, runs_dir: Path) -> None:
    """Wait while another process of this very flow run goes on: after a death Prefect may start a run twice.

    Once the first has ended, the second finds all its files and ends alike.
    """
    while flow_run.id == run_id and check_output_directory(runs_dir / run_id):
        time.sleep(_DELAY_S)


class Restarts:
    """Counts in a run's directory the deaths of its engines and of its process between two finished steps.

    Args:
        limit: Deaths in a row, without a finished step between them, that a run survives.
        directory: The run's.

    Raises ConfigError when another process holds the directory, and EngineLost when the run's process has died too
    often: to start once more is of no use.
    """

    def __init__(self, limit: int, directory: Path) -> None:
        if in_use := check_output_directory(directory):
            raise ConfigError(in_use)
        self._limit, self._directory = limit, directory
        self._last_step, self._num_deaths, died = self._read()
        if died:
            times = f"{self._num_deaths + 1} times in a row"
            self._count(EngineLost(f"the run died {times} without finishing a step"), directory)

    def __enter__(self) -> Self:
        self._write(is_going_on=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._write(is_going_on=False)

    def admit(self, error: EngineLost, directory: Path) -> None:
        """Wait a moment, so that devices are free; raises `error` when starting again is of no use any more.

        `directory` has the steps: after a rollback it is another one.
        """
        self._count(error, directory)
        self._write(is_going_on=True)
        warning = "%s. Starting the engines again (%d of %d)."
        get_run_logger().warning(warning, error, self._num_deaths, self._limit)
        time.sleep(_DELAY_S)

    def _count(self, error: EngineLost, directory: Path) -> None:
        last_step = max((int(record["step"]) for record in read_history(directory / "history.jsonl")), default=-1)
        self._num_deaths = 1 if last_step > self._last_step else self._num_deaths + 1
        self._last_step = last_step
        if self._num_deaths > self._limit:
            raise error

    def _read(self) -> tuple[int, int, bool]:
        path = self._directory / _NAME
        if not path.exists():
            return -2, 0, False
        values = json.loads(path.read_text())
        return values["last_step"], values["num_deaths"], values["is_going_on"]

    def _write(self, *, is_going_on: bool) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        values = {"last_step": self._last_step, "num_deaths": self._num_deaths, "is_going_on": is_going_on}
        partial = self._directory / f"{_NAME}.partial"
        partial.write_text(json.dumps(values))
        partial.replace(self._directory / _NAME)


def go_back(rollback: RollBack, run: Run) -> None:
    """Fork the run at a checkpoint from before the finding; the fork takes its place.

    Raises HealthStop when there is no such checkpoint.
    """
    last_good = rollback.finding.last_good
    new_id = roll_back(run.run_id, last_good, run.config, run.settings.runs_dir)
    if new_id is None:
        raise HealthStop(rollback.finding, f"there is no checkpoint of at most {last_good} iterations to go back to")
    get_run_logger().warning("%s. Going on as run %s.", rollback, new_id)
