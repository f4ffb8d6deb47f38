"""SIGTERM with notice: the end waits until the step is whole, so that a checkpoint can be saved, or time is up."""

import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

_RESERVE = 0.5
"""Share of the notice that is kept for the checkpoint itself."""


class Notice:
    """While entered, a SIGTERM inside `hold` ... `release` acts at `release`, or when half of the notice is over.

    Args:
        seconds: From SIGTERM to SIGKILL; 0 leaves signals as they are.
        is_cancelled: Whether a SIGTERM that arrived means that a person cancels the run: then it acts at once.

    Attributes:
        stands_for: The handler of SIGTERM that ours replaces; None when it replaces none.
        is_given: Whether a SIGTERM came that leaves time for a checkpoint.
    """

    def __init__(self, seconds: float, is_cancelled: Callable[[], bool] = lambda: False) -> None:
        self._seconds = seconds if threading.current_thread() is threading.main_thread() else 0.0
        self._is_cancelled = is_cancelled
        self._held = False
        self._alarm: tuple[Any, float, float] | None = None
        self.stands_for: Any = None
        self.is_given = False

    def __enter__(self) -> Self:
        if self._seconds:
            self.stands_for = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._seconds:
            self._disarm()
            signal.signal(signal.SIGTERM, self.stands_for)

    def hold(self) -> None:
        """From here on the state is not whole."""
        self._held = True

    def release(self) -> None:
        """The state is whole again; raises what SIGTERM means if it came in the meantime."""
        self._held = False
        if self.is_given:
            self._end(signal.SIGTERM, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        is_cancelled = self._is_cancelled()
        if self.is_given and not is_cancelled:  # told twice, by a scheduler and by the worker that it told too
            return
        self.is_given = not is_cancelled
        if is_cancelled or not self._held:
            self._end(number, frame)
        handler = signal.signal(signal.SIGALRM, self._end)
        left, _ = signal.setitimer(signal.ITIMER_REAL, self._seconds * _RESERVE)
        self._alarm = handler, left, time.monotonic()

    def _disarm(self) -> None:
        """Give the alarm back to whom it belonged, with the seconds that it had left."""
        if self._alarm is not None:
            handler, left, since = self._alarm
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)
            if left:
                signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - since), 0.001))
            self._alarm = None

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._disarm()
        if callable(self.stands_for):
            self.stands_for(signal.SIGTERM, frame)
        sys.exit(128 + signal.SIGTERM)
