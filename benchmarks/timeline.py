"""Where the time of a step through the real flow goes.

A step lasts from the end of the one before to its own end: it holds all that Prefect and MLflow do between the stages.
Engines (vLLM and the trainer's ranks) note every call, and so does the host between them. Calls overlap: a push runs
in both engines, several engines work side by side; so what counts is the union of the engines' intervals. Orchestration
is the step's time without that union: Prefect, MLflow, Ray, grading, tables.
`orchestration_share` is that over the step's time.
"""

import itertools
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from benchmarks.timed_process import HOST, TimedProcess, busy_file

Interval = tuple[float, float]
Metrics = dict[str, float]


class Call(NamedTuple):
    """A call of an engine or the host: seconds of the machine's clock, and `<class>.<method>`."""

    start: float
    end: float
    name: str

    @property
    def of_host(self) -> bool:
        """Whether it is no engine's."""
        return self.name.startswith(f"{HOST}.")


def measure_flow(config: Mapping[str, Any]) -> list[Metrics]:
    """Run the flow; returns each step's metrics and its account, without the first step and the last.

    The first one warms up, the last one evaluates. `busy/<class>.<method>` are the seconds of an engine's calls
    within the step, `host/<class>.<method>` those of the host's, which count as orchestration unless an engine works.
    """
    from drgrpo.config import TrainConfig
    from flows.train import train

    ends: list[float] = []
    history: list[Metrics] = []
    with _noting_engines(), _noting_commits(ends, history):
        train(TrainConfig.model_validate(config), {})
        calls = _read_calls()
    windows = list(itertools.pairwise(ends))
    return [metrics | account(w, metrics, calls) for w, metrics in zip(windows, history[1:], strict=True)][:-1]


def account(window: Interval, metrics: Mapping[str, float], calls: Sequence[Call]) -> Metrics:
    """One step's seconds by what they were spent on."""
    step, engines = window[1] - window[0], busy_seconds([call for call in calls if not call.of_host], window)
    busy: Metrics = defaultdict(float)
    for call in calls:
        # A generation begins while the step before is recorded: each step has the rest of its own and some of the next.
        if (seconds := min(call.end, window[1]) - max(call.start, window[0])) > 0:
            busy[f"{'host' if call.of_host else 'busy'}/{call.name}"] += seconds
    return {
        "account/step": step,
        "account/engines": engines,
        "account/orchestration": step - engines,
        "account/orchestration_share": (step - engines) / step,
        "account/mlflow": metrics["account/mlflow"],
        **busy,
    }


def busy_seconds(calls: Sequence[Call], window: Interval) -> float:
    """Length of the union of the calls' intervals within `window`."""
    total, reached = 0.0, window[0]
    for call in sorted(calls):
        start, end = max(call.start, reached), min(call.end, window[1])
        if end > start:
            total, reached = total + end - start, end
    return total


@contextmanager
def _noting_engines() -> Iterator[None]:
    from drgrpo.cluster import engines

    busy_file(os.getpid()).touch()
    plain, engines.Process = engines.Process, TimedProcess  # type: ignore[misc]
    try:
        yield
    finally:
        engines.Process = plain  # type: ignore[misc]
        busy_file(os.getpid()).unlink()


@contextmanager
def _noting_commits(ends: list[float], history: list[Metrics]) -> Iterator[None]:
    """Append the end of every step, and its metrics with the seconds of the commit itself."""
    from drgrpo.run import Run

    commit: Callable[[Run, int], Metrics] = Run.commit

    def timed(self: Run, step: int) -> Metrics:
        started = time.monotonic()
        metrics = commit(self, step)
        ends.append(time.monotonic())
        history.append({"step": step, **metrics, "account/mlflow": ends[-1] - started})
        return metrics

    Run.commit = timed  # type: ignore[method-assign]
    try:
        yield
    finally:
        Run.commit = commit  # type: ignore[method-assign,assignment]


def _read_calls() -> list[Call]:
    lines = (line.split() for line in busy_file(os.getpid()).read_text().splitlines())
    return [Call(float(start), float(end), name) for start, end, name in lines]
