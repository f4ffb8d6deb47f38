"""Compare configurations: every arm with every seed, on the same problems and sample seeds, ending in a report."""

from collections import deque
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from prefect import flow
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger

from drgrpo.comparison.comparison import Comparison
from drgrpo.comparison.opening import check_origin, is_tracked, open_comparison
from drgrpo.comparison.plan import ArmRun, plan_arms
from drgrpo.comparison.processes import ArmDied, ArmProcesses
from drgrpo.config import TrainConfig
from drgrpo.settings import load_settings
from flows.cancellation import is_cancelled
from flows.identity import identity, own_id
from tasks.compare import show_progress, show_report, show_runs, start_progress, train_arm

_POLL_S = 5.0


class ArmsMissing(RuntimeError):
    """Arms could not be finished; the report is made of the others."""


@flow(name="drgrpo-compare", description="Compare configurations over seeds", validate_parameters=True)
def compare(
    config: TrainConfig,
    arms: dict[str, dict[str, Any]],
    seeds: list[int],
    overrides: dict[str, Any] | None = None,
    resume_from: str = "",
) -> dict[str, Any]:
    """Train every arm with every seed, and report.

    Args:
        config: What the arms have in common; a deployment's values are its defaults.
        arms: Name to overrides, for example `{"dr-grpo": {}, "grpo": {"adv_norm.std_level": "group"}}`. Differences
            are to the first.
        seeds: Each gives every arm the same order of problems and the same sample seeds.
        overrides: Dotted path to value, for all arms.
        resume_from: Id of a comparison to go on with, also with more arms or seeds; finished ones are not run again.
    """
    settings = load_settings()
    who = identity()
    if resume_from:
        who["run_id"] = check_origin(resume_from, settings)
    tracked = is_tracked(who["run_id"], settings)
    runs = plan_arms(config, overrides or {}, arms, seeds, settings, who["run_id"], is_tracked=tracked)
    with open_comparison(runs, settings, **who, owner=own_id()) as comparison:
        with ArmProcesses(notice_s=settings.preemption_notice_s, is_cancelled=is_cancelled) as processes:
            Schedule(comparison, processes).run()
        summary = comparison.finish()
        show_report(comparison, summary)
        if summary["missing"]:
            raise ArmsMissing(f"not finished: {', '.join(summary['missing'])}; Retry goes on with them")
    return summary


class Schedule:
    """Gives each device one run after another; a run that cannot be finished is left for the report."""

    def __init__(self, comparison: Comparison, processes: ArmProcesses) -> None:
        self._comparison, self._processes = comparison, processes
        self._free = comparison.devices()
        self._states = {run.label: "done" if comparison.is_done(run) else "waiting" for run in comparison.runs}
        self._waiting = deque(run for run in comparison.runs if not comparison.is_done(run))
        self._running: dict[PrefectFuture[None], tuple[ArmRun, str]] = {}
        self._ended: SimpleQueue[PrefectFuture[None]] = SimpleQueue()
        self._deaths = {run.label: (0, 0) for run in comparison.runs}

    def run(self) -> None:
        """Until nothing runs and nothing waits."""
        for run in self._comparison.runs:
            if self._states[run.label] == "done":
                self._comparison.settle(run, self._free[0])  # the process may have died before it was
        progress, share = start_progress(self._comparison), 0.0
        while self._waiting or self._running:
            self._start()
            with suppress(Empty):
                self._end(self._ended.get(timeout=_POLL_S))
            share = show_progress(self._comparison, progress, share)
        show_runs(self._comparison, self._states)

    def _start(self) -> None:
        """Give free devices to those that wait."""
        while self._waiting and self._free:
            run, device = self._waiting.popleft(), self._free.pop(0)
            future = train_arm.submit(self._comparison, self._processes, run, device)
            self._running[future] = (run, device)
            future.add_done_callback(self._ended.put)
            self._states[run.label] = "running"
            show_runs(self._comparison, self._states)

    def _end(self, future: PrefectFuture[None]) -> None:
        """Take the device back; a run whose process died goes on at once."""
        run, device = self._running.pop(future)
        self._free.append(device)
        try:
            future.result()
            self._states[run.label] = "done"
        except ArmDied as error:
            self._start_again(run, error)
        except Exception:
            get_run_logger().exception("arm %s is given up", run.label)
            self._states[run.label] = "failed"

    def _start_again(self, run: ArmRun, error: ArmDied) -> None:
        """Unless it died too often without finishing a step in between."""
        (steps, deaths), now = self._deaths[run.label], self._comparison.num_steps(run)
        deaths = 1 if now > steps else deaths + 1
        self._deaths[run.label] = (now, deaths)
        if deaths > self._comparison.settings.max_restarts:
            get_run_logger().error("%s. It is given up.", error)
            self._states[run.label] = "failed"
            return
        get_run_logger().warning("%s. Starting it again (%d).", error, deaths)
        self._waiting.appendleft(run)
        self._states[run.label] = "waiting"
