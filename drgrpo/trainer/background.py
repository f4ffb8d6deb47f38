"""One piece of work at a time in a thread of its own, whose result or error is fetched later."""

import threading
from collections.abc import Callable
from concurrent.futures import Future


class Background:
    """Runs what `start` is given; `result` waits for it and raises what it raised, once."""

    def __init__(self) -> None:
        self._pending: Future[dict[str, float]] | None = None

    def start(self, work: Callable[[], dict[str, float]]) -> None:
        """Run `work` in a thread that does not keep the process alive."""
        future: Future[dict[str, float]] = Future()
        self._pending = future
        threading.Thread(target=_run, args=(future, work), daemon=True, name="checkpoint").start()

    def result(self) -> dict[str, float] | None:
        """What the last work returned, or None when nothing was started since the last call."""
        pending, self._pending = self._pending, None
        return None if pending is None else pending.result()


def _run(future: "Future[dict[str, float]]", work: Callable[[], dict[str, float]]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)
