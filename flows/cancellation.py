"""Cancel in Prefect, told from other ends of a run's process, all of which are SIGTERM.

Prefect's runner announces a Cancel to the process before the signal, but only to one whose handler is Prefect's own.
Without the announcement a cancelled run counts as crashed, and is started again.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from prefect._internal.control_listener import get_intent
from prefect.utilities import engine

from drgrpo.notice import Notice


def is_cancelled() -> bool:
    """Whether Prefect has announced a Cancel."""
    return get_intent() == "cancel"


@contextmanager
def announced(notice: Notice) -> Iterator[None]:
    """Within the block Prefect takes the handler of `notice`, which calls Prefect's, for its own."""
    own = engine._prefect_sigterm_handler
    if notice.stands_for is own:
        engine._prefect_sigterm_handler = signal.getsignal(signal.SIGTERM)  # type: ignore[assignment]
    try:
        yield
    finally:
        engine._prefect_sigterm_handler = own
