"""SIGTERM with notice: it waits for the whole step, or half of the notice, or for nobody when a person cancels."""

import os
import signal
import time
from collections.abc import Iterator
from typing import NoReturn

import pytest

from drgrpo.notice import Notice


class Told(BaseException):
    """What the handler of before raises."""


@pytest.fixture(autouse=True)
def handler() -> Iterator[object]:
    """The handlers of before: one that tells, and an alarm a minute away, as pytest-timeout has one."""

    def tell(*_: object) -> NoReturn:
        raise Told

    kept = signal.signal(signal.SIGTERM, tell), signal.signal(signal.SIGALRM, tell)
    left, _ = signal.setitimer(signal.ITIMER_REAL, 60)
    yield tell
    signal.setitimer(signal.ITIMER_REAL, left)
    signal.signal(signal.SIGTERM, kept[0])
    signal.signal(signal.SIGALRM, kept[1])


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_it_acts_at_once_unless_the_state_is_held() -> None:
    with Notice(60) as notice:
        with pytest.raises(Told):
            terminate()
        assert notice.is_given


def test_it_waits_for_the_state_to_be_whole_and_a_second_signal_hurries_nobody() -> None:
    with Notice(60) as notice:
        notice.hold()
        terminate()
        terminate()
        with pytest.raises(Told):
            notice.release()
        terminate()  # while the checkpoint is saved


def test_it_acts_when_half_of_the_notice_is_over() -> None:
    with Notice(1.0) as notice:
        notice.hold()
        started = time.monotonic()
        terminate()
        with pytest.raises(Told):
            time.sleep(20)
        assert 0.5 <= time.monotonic() - started < 10


def test_a_cancel_acts_at_once_also_after_a_notice() -> None:
    cancelled = [False]
    with Notice(60, lambda: cancelled[0]) as notice:
        notice.hold()
        terminate()
        assert notice.is_given
        cancelled[0] = True
        with pytest.raises(Told):
            terminate()
        assert not notice.is_given  # nobody waits for a checkpoint


def test_the_alarm_and_the_handlers_of_before_come_back(handler: object) -> None:
    with Notice(40) as notice:
        assert notice.stands_for is handler
        notice.hold()
        terminate()
        assert 10 < signal.getitimer(signal.ITIMER_REAL)[0] <= 20
    assert signal.getsignal(signal.SIGTERM) is handler and signal.getsignal(signal.SIGALRM) is handler
    assert 40 < signal.getitimer(signal.ITIMER_REAL)[0] <= 60


def test_without_a_notice_nothing_changes(handler: object) -> None:
    with Notice(0) as notice:
        assert signal.getsignal(signal.SIGTERM) is handler and notice.stands_for is None
        notice.hold()
        with pytest.raises(Told):
            terminate()
        assert not notice.is_given
