"""The completions of one call to the grader pool, shared by the threads that feed its workers."""

import threading
from collections import deque
from collections.abc import Sequence

from drgrpo.rewards.grade import Grade, GradeItem

_MAX_CHUNK = 64
_MAX_CHUNK_CHARACTERS = 1_000_000


class Batch:
    """Hands out chunks of item indices, collects grades, and knows when all are there. Thread-safe."""

    def __init__(self, items: Sequence[GradeItem], num_workers: int) -> None:
        self.items = items
        self._num_workers = num_workers
        self._pending = deque(range(len(items)))
        self._grades: dict[int, Grade] = {}
        self._num_deaths: dict[int, int] = {}
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def take(self) -> list[int]:
        """The next chunk, empty when nothing is left; chunks shrink towards the end so that workers finish together."""
        with self._changed:
            size = max(1, min(_MAX_CHUNK, len(self._pending) // (2 * self._num_workers)))
            chunk: list[int] = []
            num_characters = 0
            while self._pending and len(chunk) < size and num_characters < _MAX_CHUNK_CHARACTERS:
                chunk.append(self._pending.popleft())
                num_characters += len(self.items[chunk[-1]].completion)
            return chunk

    def give_back(self, indices: Sequence[int]) -> None:
        """Put items that were taken but not graded at the front again."""
        with self._changed:
            if self._error is None:
                self._pending.extendleft(reversed(indices))
            self._changed.notify_all()

    def finish(self, index: int, grade: Grade) -> None:
        """Record the grade of an item."""
        with self._changed:
            self._grades[index] = grade
            if len(self._grades) == len(self.items):
                self._changed.notify_all()

    def count_death(self, index: int) -> int:
        """How often a worker has died over this item, this time included."""
        with self._changed:
            self._num_deaths[index] = self._num_deaths.get(index, 0) + 1
            return self._num_deaths[index]

    def fail(self, error: BaseException) -> None:
        """Give up: nothing more is handed out, and `wait` raises `error`."""
        with self._changed:
            self._error = self._error or error
            self._pending.clear()
            self._changed.notify_all()

    def wait(self) -> list[Grade]:
        """Block until every item has its grade; the grades in the order of the items."""
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or len(self._grades) == len(self.items))
            if self._error is not None:
                raise self._error
            return [self._grades[index] for index in range(len(self.items))]

    def wait_for_work(self) -> bool:
        """Block until items are pending (True) or the batch is over (False)."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._is_over())
            return bool(self._pending)

    def _is_over(self) -> bool:
        return self._error is not None or len(self._grades) == len(self.items)
