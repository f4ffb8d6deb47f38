"""The processes of an embedded Ray that are not workers, whose death Ray tells late, or not at all.

A dead raylet is noticed after some 15 seconds. Without `gcs_server`, its store of names, Ray goes on, and ends this
very process, with status 1, when a request to it has failed for 60 seconds.
"""

import psutil

_NAMES = ("gcs_server", "raylet")

# Ray, too, is there once in a process.
_watched: dict[str, psutil.Process] = {}


def watch_services() -> None:
    """From now on look after those that this process has started."""
    _watched.clear()
    _watched.update({name: child for child in psutil.Process().children() if (name := child.name()) in _NAMES})


def forget_services() -> None:
    """They are to end."""
    _watched.clear()


def dead_services() -> list[str]:
    """Names of those that have died."""
    return [name for name, process in _watched.items() if not _is_alive(process)]


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
