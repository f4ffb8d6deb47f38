"""Events of one run on disk, delivered in order by a background thread: a dead server never blocks or loses a step."""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from drgrpo.redaction import mask

Event = Mapping[str, Any]

logger = logging.getLogger(__name__)


class Unreachable(Exception):
    """The receiver is away: the event stays in the spool and is tried again."""


class Spool:
    """A journal of JSON lines and a cursor behind which everything is delivered.

    `append` writes and syncs the journal and returns; a daemon thread hands the events to `deliver` one by one. An
    event may be delivered twice (a crash between delivery and the cursor), never out of order and never lost, so
    `deliver` has to be idempotent. An event that `deliver` refuses (any exception but `Unreachable`) is set aside in
    `<journal>.refused`, so that one bad event does not hold back the others.

    Args:
        path: Journal; what an earlier process left in it is delivered first.
        deliver: Called with one event; raises `Unreachable` to be called again with it later.
        retry_s: Pause after an unreachable attempt, seconds.
    """

    def __init__(self, path: Path, deliver: Callable[[Event], None], *, retry_s: float = 5.0) -> None:
        self.path, self.num_refused = path, 0
        self._deliver, self._retry_s = deliver, retry_s
        self._cursor_path = path.with_name(path.name + ".cursor")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._cursor, self._end = self._recover()
        self._changed = threading.Condition()
        self._closed = self._hurry = False
        self._failed_attempt = float("-inf")
        self._journal = path.open("ab")
        self._thread = threading.Thread(target=self._run, name=f"spool-{path.stem}", daemon=True)
        self._thread.start()

    @property
    def num_pending(self) -> int:
        """Events not delivered yet."""
        return len(self.pending())

    def pending(self) -> list[Event]:
        """Events not delivered yet, oldest first."""
        with self._changed:
            cursor, end = self._cursor, self._end
        with self.path.open("rb") as journal:
            journal.seek(cursor)
            return [json.loads(line) for line in journal.read(end - cursor).splitlines()]

    def append(self, event: Event) -> None:
        """Put a JSON-able event on disk (synced) for delivery."""
        line = json.dumps(event, allow_nan=False).encode() + b"\n"
        with self._changed:
            self._journal.write(line)
            self._journal.flush()
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
        num_pending = self.flush(timeout_s)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout=1.0)
        self._journal.close()
        return num_pending

    def _recover(self) -> tuple[int, int]:
        content = self.path.read_bytes() if self.path.exists() else b""
        end = content.rfind(b"\n") + 1  # a crash in the middle of a write leaves a torn last line
        cursor = int(self._cursor_path.read_text()) if self._cursor_path.exists() else 0
        if cursor >= end:
            # The cursor goes first: a crash in between delivers again, the other order would skip events.
            self._cursor_path.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)
            self.path.touch()
            return 0, 0
        os.truncate(self.path, end)
        return cursor, end

    def _run(self) -> None:
        with self.path.open("rb") as journal:
            while self._wait_for_event():
                journal.seek(self._cursor)
                line = journal.readline()
                started = time.monotonic()
                try:
                    self._attempt(json.loads(line))
                except Unreachable as error:
                    logger.debug("not delivered yet: %s", error)
                    self._pause(started)
                else:
                    self._advance(len(line))

    def _attempt(self, event: Event) -> None:
        try:
            self._deliver(event)
        except Unreachable:
            raise
        except Exception as error:
            self.num_refused += 1
            reason = mask(str(error))
            logger.warning("refused by the tracking server, set aside in %s.refused: %s", self.path, reason)
            with self.path.with_name(self.path.name + ".refused").open("a") as refused:
                refused.write(json.dumps({"error": reason, "event": event}) + "\n")

    def _advance(self, num_bytes: int) -> None:
        staged = self._cursor_path.with_name(self._cursor_path.name + ".new")
        staged.write_text(str(self._cursor + num_bytes))
        staged.replace(self._cursor_path)
        with self._changed:
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
