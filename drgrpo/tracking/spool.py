"""Events of one run on disk, delivered in order by a background thread: a dead server never blocks or loses a step."""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from drgrpo.config.errors import ConfigError
from drgrpo.config.output_lock import hold_output_directory
from drgrpo.durable import replace_json, sync_directory
from drgrpo.redaction import mask

Event = Mapping[str, Any]

logger = logging.getLogger(__name__)


class Unreachable(Exception):
    """The receiver is away: the event stays in the spool and is tried again."""


class Spool:
    """A journal of JSON lines and a cursor behind which everything is delivered. The journal is kept as a whole.

    `append` writes and syncs the journal and returns; a daemon thread hands the events to `deliver` one by one, for as
    long as it takes. An event may be delivered twice (a crash between delivery and the cursor, a cursor that cannot be
    read), never out of order and never lost, so `deliver` has to be idempotent. What `deliver` refuses (any exception
    but `Unreachable`) and what is no JSON is set aside in `<journal>.refused`, so that it does not hold back the rest.

    Args:
        path: Journal; what an earlier process left in it is delivered first. Its directory is held until `close`.
        deliver: Called with one event; raises `Unreachable` to be called again with it later.
        retry_s: Pause after an unreachable attempt, seconds.
        wait_s: How long to wait for another process that holds the directory, seconds.

    Raises ConfigError, which names that process, when it does not leave in time.
    """

    def __init__(
        self, path: Path, deliver: Callable[[Event], None], *, retry_s: float = 5.0, wait_s: float = 0.0
    ) -> None:
        self.path, self.num_refused = path, 0
        self._deliver, self._retry_s = deliver, retry_s
        self._cursor_path = path.with_name(path.name + ".cursor")
        self._held = _hold(path.parent, wait_s)
        self._journal = path.open("ab", buffering=0)  # a failed write leaves nothing behind for the next
        sync_directory(path.parent)
        self._cursor, self._end = self._recover()
        self._changed = threading.Condition()
        self._closed = self._hurry = self._left = False
        self._failed_attempt = float("-inf")
        self._thread = threading.Thread(target=self._run, name=f"spool-{path.stem}", daemon=True)
        self._thread.start()

    @property
    def num_pending(self) -> int:
        """Events not delivered yet."""
        with self._changed, self.path.open("rb") as journal:
            journal.seek(self._cursor)
            return journal.read(self._end - self._cursor).count(b"\n")

    def append(self, event: Event) -> None:
        """Put a JSON-able event on disk (synced) for delivery. Raises OSError, for a full disk too."""
        line = json.dumps(event, allow_nan=False).encode() + b"\n"
        with self._changed:
            self._journal.truncate(self._end)  # what a full disk left of the line before
            rest = memoryview(line)
            while rest:
                rest = rest[self._journal.write(rest) :]
            os.fsync(self._journal.fileno())
            self._end += len(line)
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> int:
        """Deliver now; returns the number of events still pending after success, one failed attempt or the time."""
        started = time.monotonic()
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._cursor == self._end or self._failed_attempt >= started or not self._thread.is_alive(),
                timeout_s,
            )
        return self.num_pending

    def close(self, timeout_s: float) -> int:
        """Flush, stop the thread, and return the number of events that stay on disk for a later process."""
        self.flush(timeout_s)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout=1.0)
        with self._changed:
            self._left = True
        num_pending = self.num_pending
        self._journal.close()
        self._held.close()
        return num_pending

    def _recover(self) -> tuple[int, int]:
        content = self.path.read_bytes()
        end = content.rfind(b"\n") + 1  # a crash in the middle of a write leaves a torn last line
        self._journal.truncate(end)
        try:
            cursor = int(self._cursor_path.read_text())
        except (FileNotFoundError, ValueError):
            return 0, end
        return (cursor if 0 < cursor <= end and content[cursor - 1 : cursor] == b"\n" else 0), end

    def _run(self) -> None:
        with self.path.open("rb") as journal:
            while self._wait_for_event():
                journal.seek(self._cursor)
                line = journal.readline()
                started = time.monotonic()
                try:
                    self._attempt(line)
                    self._advance(len(line))
                except (Unreachable, OSError) as error:  # OSError: no room for the cursor
                    logger.debug("not delivered yet: %s", error)
                    self._pause(started)

    def _attempt(self, line: bytes) -> None:
        try:
            self._deliver(json.loads(line))
        except Unreachable:
            raise
        except Exception as error:
            reason = mask(str(error))
            logger.warning("refused by the tracking server, set aside in %s.refused: %s", self.path, reason)
            with self.path.with_name(self.path.name + ".refused").open("a") as refused:
                refused.write(json.dumps({"error": reason, "event": line.decode(errors="replace").strip()}) + "\n")
            self.num_refused += 1

    def _advance(self, num_bytes: int) -> None:
        with self._changed:
            if self._left:  # the request took longer than `close`, and the journal may be another's by now
                return
            replace_json(self._cursor_path, self._cursor + num_bytes)
            self._cursor += num_bytes
            self._changed.notify_all()

    def _wait_for_event(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._cursor < self._end)
            return not self._closed

    def _pause(self, attempt_started: float) -> None:
        with self._changed:
            self._failed_attempt = attempt_started
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._hurry or self._closed, self._retry_s)
            self._hurry = False


def read_events(path: Path) -> list[Event]:
    """All whole events of a journal, delivered or not, oldest first; none without a journal."""
    lines = path.read_bytes().rpartition(b"\n")[0].splitlines() if path.exists() else []
    events = []
    for line in lines:
        try:
            events.append(json.loads(line))
        except ValueError:  # set aside when its turn came
            continue
    return [event for event in events if isinstance(event, dict)]


def _hold(directory: Path, wait_s: float) -> ExitStack:
    deadline, held = time.monotonic() + wait_s, ExitStack()
    while True:
        try:
            held.enter_context(hold_output_directory(directory))
            return held
        except ConfigError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.2)
