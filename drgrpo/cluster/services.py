"""The processes of an embedded Ray that are not workers, whose death Ray tells late, or not at all.

A dead raylet is noticed after some 15 seconds. Without `gcs_server`, its store of names, Ray goes on, and ends this
very process, with status 1, when a request to it has failed for 60 seconds; a worker that was to become an engine
waits as long for it before it ends.
"""

from collections.abc import Iterator
from contextlib import suppress

import psutil

_NAMES = ("gcs_server", "raylet")
_LAST_WORDS_S = 5.0

# Ray, too, is there once in a process.
_watched: dict[str, psutil.Process] = {}


def watch_services() -> None:
    """From now on look after those that this process has started."""
    _watched.clear()
    _watched.update({name: child for child in psutil.Process().children() if (name := child.name()) in _NAMES})


def forget_services() -> int | None:
    """They are to end; returns the raylet's id, None where none is looked after."""
    raylet = _watched.get("raylet")
    _watched.clear()
    return raylet.pid if raylet else None


def end_workers(raylet: int) -> None:
    """Kill those workers of a raylet that is gone which are still there after five seconds."""
    _, left = psutil.wait_procs(list(_workers(raylet)), timeout=_LAST_WORDS_S)
    for worker in left:
        with suppress(psutil.NoSuchProcess):
            worker.kill()
    psutil.wait_procs(left, timeout=_LAST_WORDS_S)


def dead_services() -> list[str]:
    """Names of those that have died."""
    return [name for name, process in _watched.items() if not _is_alive(process)]


def _workers(raylet: int) -> Iterator[psutil.Process]:
    """Found by what the raylet wrote into their environment: one that was killed is nobody's parent any more."""
    for process in psutil.process_iter():
        try:
            if process.environ().get("RAY_RAYLET_PID") == str(raylet):
                yield process
        except psutil.Error:  # gone, or another user's
            continue


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
