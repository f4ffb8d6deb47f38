"""How a run ends in MLflow."""

from asyncio import CancelledError
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.exceptions import TerminationSignal

from drgrpo.opening import _finish


def behind(error: BaseException) -> ValueError:
    """An error that came up while `error` was handled, two deep."""
    try:
        try:
            raise error
        except BaseException:
            raise KeyError("a") from None
    except KeyError as first:
        second = ValueError("Task run is not set")
        second.__context__ = first
        return second


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "FINISHED"),
        (ValueError("a"), "FAILED"),
        (behind(OSError("a")), "FAILED"),
        (behind(CancelledError()), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(143), "KILLED"),
        (TerminationSignal(15), "KILLED"),
        (behind(TerminationSignal(15)), "KILLED"),
    ],
)
def test_the_end_by_a_signal_is_told_from_a_failure(error: BaseException | None, status: str) -> None:
    ends: list[str] = []
    tracker: Any = SimpleNamespace(finish=ends.append)
    _finish(tracker, error)
    assert ends == [status]
