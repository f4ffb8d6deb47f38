"""The journal of a run's events: order, full disks, damaged files, long outages, one deliverer at a time."""

import json
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drgrpo.config.output_lock import hold_output_directory
from drgrpo.tracking import TrackingError, deliver_spools
from drgrpo.tracking.spool import Event, Spool, Unreachable


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "run.jsonl"


class Receiver:
    """Takes events, unless it is away; `failures` are raised one after another before."""

    def __init__(self, failures: int = 0) -> None:
        self.received: list[int] = []
        self.is_away, self.failures, self.attempts = False, failures, 0

    def __call__(self, event: Event) -> None:
        self.attempts += 1
        if self.is_away or self.attempts <= self.failures:
            raise Unreachable("away")
        self.received.append(event["n"])


def write_events(journal: Path, count: int) -> list[str]:
    lines = [json.dumps({"n": n}) + "\n" for n in range(count)]
    journal.write_text("".join(lines))
    return lines


def cursor(journal: Path) -> Path:
    return journal.with_name(journal.name + ".cursor")


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """A write beyond `num_bytes` is an OSError after what fits was written, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def wait_until(condition: object, timeout_s: float = 20.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_the_spool_repeats_from_its_cursor_and_drops_only_a_torn_line(journal: Path) -> None:
    lines = write_events(journal, 3)
    journal.write_text("".join(lines) + '{"n": 3, "tor')
    cursor(journal).write_text(str(len(lines[0])))
    receiver = Receiver()
    spool = Spool(journal, receiver)
    spool.append({"n": 4})
    assert spool.close(10) == 0
    assert receiver.received == [1, 2, 4]
    assert Spool(journal, receiver).close(10) == 0
    assert receiver.received == [1, 2, 4]


def test_the_spool_keeps_the_order_while_the_receiver_comes_and_goes(journal: Path) -> None:
    received: list[int] = []
    attempts = 0

    def deliver(event: Event) -> None:
        nonlocal attempts
        attempts += 1
        if attempts % 3:
            raise Unreachable("away")
        received.append(event["n"])

    spool = Spool(journal, deliver, retry_s=0.001)
    for n in range(10):
        spool.append({"n": n})
    wait_until(lambda: spool.num_pending == 0)
    assert received == list(range(10)) and attempts == 30
    assert spool.close(10) == 0


def test_an_outage_of_thousands_of_attempts_ends_with_every_event_delivered(journal: Path) -> None:
    """At the usual pause of 5 s these are almost three hours: nothing counts attempts, and the pause does not grow."""
    receiver = Receiver(failures=2000)
    spool = Spool(journal, receiver, retry_s=1e-6)
    for n in range(3):
        spool.append({"n": n})
    wait_until(lambda: spool.num_pending == 0)
    assert receiver.received == [0, 1, 2] and receiver.attempts == 2003
    assert spool.close(10) == 0


def test_an_event_that_finds_no_room_is_an_error_and_neither_delivered_nor_in_the_way(journal: Path) -> None:
    receiver = Receiver()
    receiver.is_away = True
    spool = Spool(journal, receiver, retry_s=0.001)
    spool.append({"n": 0})
    with largest_file(journal.stat().st_size + 5), pytest.raises(OSError, match="File too large"):
        spool.append({"n": 1, "padding": "x" * 100})
    spool.append({"n": 2})
    assert spool.num_pending == 2
    assert journal.read_text() == '{"n": 0}\n{"n": 2}\n'
    receiver.is_away = False
    assert spool.close(10) == 0
    assert receiver.received == [0, 2] and spool.num_refused == 0


def test_a_cursor_that_finds_no_room_is_written_later(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from drgrpo.tracking import spool as module

    attempts, write = 0, module.replace_json

    def full(path: Path, value: object) -> None:
        nonlocal attempts
        attempts += 1
        if attempts <= 3:
            raise OSError(28, "No space left on device")
        write(path, value)

    monkeypatch.setattr(module, "replace_json", full)
    receiver = Receiver()
    spool = Spool(journal, receiver, retry_s=0.001)
    spool.append({"n": 0})
    spool.append({"n": 1})
    wait_until(lambda: spool.num_pending == 0)
    assert spool.close(10) == 0
    assert receiver.received == [0, 0, 0, 0, 1]
    assert int(cursor(journal).read_text()) == journal.stat().st_size


def test_a_line_that_is_no_event_is_set_aside_and_the_next_is_delivered(journal: Path) -> None:
    journal.write_bytes(b'{"n": 0}\n\x00\x00\xff\n{"n": \n{"n": 1}\n')
    receiver = Receiver()
    spool = Spool(journal, receiver)
    assert spool.close(10) == 0
    assert receiver.received == [0, 1] and spool.num_refused == 2
    refused = [json.loads(line) for line in (journal.with_name("run.jsonl.refused")).read_text().splitlines()]
    assert [entry["event"] for entry in refused] == ["\x00\x00\ufffd", '{"n":']


@pytest.mark.parametrize("text", ["", "1", "9999", "-1", "nine", "9" * 5000])
def test_an_unreadable_cursor_is_the_beginning(journal: Path, text: str) -> None:
    write_events(journal, 2)
    cursor(journal).write_text(text)
    receiver = Receiver()
    assert Spool(journal, receiver).close(10) == 0
    assert receiver.received == [0, 1]


def test_a_spool_in_use_is_refused_to_a_second_deliverer_which_names_the_first(journal: Path, tmp_path: Path) -> None:
    receiver = Receiver()
    receiver.is_away = True
    spool = Spool(journal, receiver)
    spool.append({"n": 0})
    with pytest.raises(TrackingError, match=rf"{tmp_path}.*in use by another run \(process {os.getpid()}\)"):
        deliver_spools("http://127.0.0.1:9", tmp_path, timeout_s=0.1)
    receiver.is_away = False
    spool.append({"n": 1})
    assert spool.close(10) == 0
    assert receiver.received == [0, 1]


def test_a_run_waits_for_the_process_that_delivers_its_spool(journal: Path) -> None:
    write_events(journal, 1)
    receiver, held, leave = Receiver(), threading.Event(), threading.Event()

    def deliver_by_hand() -> None:
        with hold_output_directory(journal.parent):
            held.set()
            leave.wait(20)

    thread = threading.Thread(target=deliver_by_hand)
    thread.start()
    held.wait(20)
    threading.Timer(1.0, leave.set).start()
    spool = Spool(journal, receiver, wait_s=20.0)
    assert leave.is_set()
    thread.join()
    assert spool.close(10) == 0 and receiver.received == [0]


def test_a_delivery_that_ends_after_the_spool_was_left_moves_no_cursor(journal: Path) -> None:
    started, answer = threading.Event(), threading.Event()

    def slow(_: Event) -> None:
        started.set()
        answer.wait(20)

    first = Spool(journal, slow)
    first.append({"n": 0})
    first.append({"n": 1})
    started.wait(20)
    assert first.close(0.0) == 2
    receiver = Receiver()
    second = Spool(journal, receiver)
    wait_until(lambda: second.num_pending == 0)
    answer.set()
    first._thread.join(20)
    assert second.close(10) == 0 and receiver.received == [0, 1]
    assert int(cursor(journal).read_text()) == journal.stat().st_size
