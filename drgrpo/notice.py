"""SIGTERM with notice: the end waits until the step is whole, so that a checkpoint can be saved, or time is up."""

import signal
import sys
import threading
from types import FrameType
from typing import Any, Self

_RESERVE = 0.5
"""Share of the notice that is kept for the checkpoint itself."""


class Notice:
    """While entered, a SIGTERM inside `hold` ... `release` acts at `release`, or when half of the notice is over.

    Args:
        seconds: From SIGTERM to SIGKILL; 0 leaves signals as they are.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds if threading.current_thread() is threading.main_thread() else 0.0
        self._held = self._is_given = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if self._seconds:
            for number, handler in ((signal.SIGTERM, self._note), (signal.SIGALRM, self._end)):
                self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_: object) -> None:
        if self._seconds:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def hold(self) -> None:
        """From here on the state is not whole."""
        self._held = True

    def release(self) -> None:
        """The state is whole again; raises what SIGTERM means if it came in the meantime."""
        self._held = False
        if self._is_given:
            self._end(signal.SIGTERM, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._is_given = True
        if not self._held:
            self._end(number, frame)
        signal.setitimer(signal.ITIMER_REAL, self._seconds * _RESERVE)

    def _end(self, number: int, frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        before = self._before[signal.SIGTERM]
        if callable(before):
            before(signal.SIGTERM, frame)
        sys.exit(128 + signal.SIGTERM)
