"""An engine ends with the processes it belongs to, its raylet and the flow that started it, and when a call hangs.

Ray stops actors when their driver ends in an orderly way, but an actor outlives a raylet that was killed, and would
keep its device memory.
"""

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_INTERVAL_S = 1.0
_FAREWELL_S = 10.0
"""A process that hangs stays for so long after its stacks, so that its peers print theirs before it breaks them off."""


def watch(*pids: int) -> None:
    """Kill this process group's own process as soon as its parent or one of `pids` (0: none) is gone."""
    parent = os.getppid()
    watched = [pid for pid in pids if pid]
    threading.Thread(target=_watch, args=(parent, watched), daemon=True, name="watchdog").start()


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Print the stacks of all threads when the block takes longer, and end the process ten seconds later.

    A thread in C prints and the kernel's SIGALRM ends, so both work while Python hangs in a collective; the flow then
    sees a lost engine.
    """
    faulthandler.dump_traceback_later(seconds, file=sys.__stderr__ or sys.stderr)
    signal.setitimer(signal.ITIMER_REAL, seconds + _FAREWELL_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
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
