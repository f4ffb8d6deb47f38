"""Where a run begins, and how it goes on after an engine was lost or a health gate asked for a rollback."""

import json
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

from prefect.logging import get_run_logger

from drgrpo.cluster.cluster import EngineLost
from drgrpo.config import TrainConfig
from drgrpo.config.output_lock import hold_output_directory
from drgrpo.durable import replace_json
from drgrpo.health import HealthStop, RollBack
from drgrpo.opening import open_run
from drgrpo.origin import Origin, fork_run
from drgrpo.report import read_history
from drgrpo.rollback import newest_run, roll_back
from drgrpo.run import Run
from drgrpo.settings import Settings
from flows.cancellation import announced, is_cancelled
from flows.identity import Identity, identity, own_id

_DELAY_S = 2.0
_NAME = "restarts.json"


def beginning(origin: Origin | None, config: TrainConfig, settings: Settings) -> Identity:
    """Which run a flow is to train: its own, the one that `origin` names, or a fork of that, which is made here."""
    who = identity(origin)
    if origin and origin.step is not None:
        fork_run(origin, who["run_id"], config, settings.runs_dir)
    return who


def to_the_end(
    loop: Callable[[Run], dict[str, Any]], config: TrainConfig, settings: Settings, who: Identity
) -> dict[str, Any]:
    """Train run `who` by `loop` from where its files end; returns its summary.

    It goes on from there when an engine was lost, and from an earlier checkpoint when a health gate wants it to. Its
    directory is held all the while. Raises ConfigError when another process holds it.
    """
    with ExitStack() as held:
        _hold(held, who["run_id"], settings.runs_dir)
        while True:
            newest, config = newest_run(who["run_id"], config, settings.runs_dir)
            if newest != who["run_id"]:
                who["run_id"] = newest
                _hold(held, newest, settings.runs_dir)
            with Restarts(settings.max_restarts, settings.runs_dir / newest) as restarts:
                try:
                    return _train(loop, config, settings, who, restarts)
                except RollBack as rollback:
                    go_back(rollback, newest, config, settings.runs_dir)


def _hold(held: ExitStack, run_id: str, runs_dir: Path) -> None:
    """Hold the run's directory until the end."""
    held.enter_context(hold_output_directory(runs_dir / run_id, own_id()))


def _train(
    loop: Callable[[Run], dict[str, Any]], config: TrainConfig, settings: Settings, who: Identity, restarts: "Restarts"
) -> dict[str, Any]:
    """The loop's summary; engines that were lost on the way are started again."""
    while True:
        run: Run | None = None
        try:
            with open_run(config, settings, **who, is_cancelled=is_cancelled) as run, announced(run.notice):
                return loop(run)
        except EngineLost as error:
            if run is not None:
                run.notice.release()  # a SIGTERM that was noted ends the run: the machine goes away
            restarts.admit(error)


class Restarts:
    """Counts in a run's directory the deaths of its engines and of its process between two finished steps.

    The file is there while the run goes on, and after a death. An end in order removes it, which needs no room on a
    full disk; the run that is started after that counts afresh.

    Args:
        limit: Deaths in a row, without a finished step between them, that a run survives.
        directory: The run's.

    Raises EngineLost when the run's process has died too often: to start once more is of no use.
    """

    def __init__(self, limit: int, directory: Path) -> None:
        self._limit, self._directory = limit, directory
        self._last_step, self._num_deaths = -2, 0
        if found := self._read():
            self._last_step, self._num_deaths = found
            times = f"{self._num_deaths + 1} times in a row"
            self._count(EngineLost(f"the run died {times} without finishing a step"))

    def __enter__(self) -> Self:
        self._write()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def admit(self, error: EngineLost) -> None:
        """Wait a moment, so that devices are free; raises `error` when starting again is of no use any more."""
        self._count(error)
        self._write()
        warning = "%s. Starting the engines again (%d of %d)."
        get_run_logger().warning(warning, error, self._num_deaths, self._limit)
        time.sleep(_DELAY_S)

    def _count(self, error: EngineLost) -> None:
        last_step = max((int(record["step"]) for record in read_history(self._directory / "history.jsonl")), default=-1)
        self._num_deaths = 1 if last_step > self._last_step else self._num_deaths + 1
        self._last_step = last_step
        if self._num_deaths > self._limit:
            self._end()
            raise error

    def _end(self) -> None:
        with suppress(OSError):  # the disk's error must not hide the run's
            (self._directory / _NAME).unlink(missing_ok=True)

    def _read(self) -> tuple[int, int] | None:
        try:
            values = json.loads((self._directory / _NAME).read_bytes())
            return int(values["last_step"]), int(values["num_deaths"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def _write(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        replace_json(self._directory / _NAME, {"last_step": self._last_step, "num_deaths": self._num_deaths})


def go_back(rollback: RollBack, run_id: str, config: TrainConfig, runs_dir: Path) -> None:
    """Fork the run at a checkpoint from before the finding; the fork takes its place.

    Raises HealthStop when there is no such checkpoint.
    """
    last_good = rollback.finding.last_good
    new_id = roll_back(run_id, last_good, config, runs_dir)
    if new_id is None:
        raise HealthStop(rollback.finding, f"there is no checkpoint of at most {last_good} iterations to go back to")
    get_run_logger().warning("%s. Going on as run %s.", rollback, new_id)
