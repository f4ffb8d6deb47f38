"""An engine ends with the processes it belongs to, its raylet and the flow that started it, and when a call hangs.

Ray stops actors when their driver ends in an orderly way, but an actor outlives a raylet that was killed, and would
keep its device memory.
"""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_INTERVAL_S = 1.0


def watch(*pids: int) -> None:
    """Kill this process group's own process as soon as its parent or one of `pids` (0: none) is gone."""
    parent = os.getppid()
    watched = [pid for pid in pids if pid]
    threading.Thread(target=_watch, args=(parent, watched), daemon=True, name="watchdog").start()


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Print the stacks of all threads and end the process when the block takes longer.

    A thread in C does it, so it works while Python hangs in a collective; the flow then sees a lost engine.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _watch(parent: int, pids: list[int]) -> None:
    while os.getppid() == parent and all(_alive(pid) for pid in pids):
        time.sleep(_INTERVAL_S)
    os._exit(1)  # engine threads and atexit handlers may hang; nothing here is worth saving


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
