"""Waiting for Ray in Python, where a signal acts at once.

`ray.get` and `ray.wait` wait in C++, and let nothing through but KeyboardInterrupt: what another signal's handler
raises there, as Prefect's does for the SIGTERM of a Cancel, is lost, and the run goes on.
"""

from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import Any

from ray.exceptions import RaySystemError

from drgrpo.cluster.services import dead_services

_LOOK_EVERY_S = 1.0


def result(reference: Any) -> Any:
    """What `reference` refers to, once it is there; raises what its task raised."""
    return results([reference])[0]


def results(references: Sequence[Any]) -> list[Any]:
    """As `result`, in order; raises as soon as one of the tasks has failed, whatever the others do.

    Raises RaySystemError when a service of the embedded Ray has died.
    """
    futures: list[Future[Any]] = [reference.future() for reference in references]
    while not _are_settled(futures):
        if dead := dead_services():
            raise RaySystemError(f"{', '.join(dead)} died")
    for future in futures:
        if future.done() and (error := future.exception()):
            raise error
    return [future.result() for future in futures]


def outcomes(references: Sequence[Any], timeout_s: float) -> list[Future[Any] | None]:
    """The finished future of each reference; None for one that was not there after `timeout_s` seconds."""
    futures: list[Future[Any]] = [reference.future() for reference in references]
    done, _ = wait(futures, timeout=timeout_s)
    return [future if future in done else None for future in futures]


def _are_settled(futures: Sequence[Future[Any]]) -> bool:
    """Whether all are done or one has failed, which is waited for a moment."""
    done, left = wait(futures, timeout=_LOOK_EVERY_S, return_when=FIRST_EXCEPTION)
    return not left or any(future.exception() for future in done)
