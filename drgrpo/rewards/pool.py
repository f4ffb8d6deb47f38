"""A pool of grader processes with a real time limit per completion: one that hangs or crashes costs its own sample."""

import math
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from drgrpo.rewards.batch import Batch
from drgrpo.rewards.grade import Grade, GradeItem
from drgrpo.rewards.lane import Lane
from drgrpo.rewards.process import GraderProcess, WorkerDied
from drgrpo.rewards.registry import BUILT_IN, name_errors

MEMORY_BYTES = 4 * 2**30


class GraderPool:
    """Grades completions in separate processes.

    A completion over `timeout_s` seconds (all functions together) gets status `timeout`; one whose grader raises,
    returns no finite number, or kills its process twice gets `error`; both score 0. The process is killed with SIGKILL
    and replaced, and the rest of the batch goes on. Starting a process does not count against the limit.
    """

    def __init__(
        self,
        functions: Mapping[str, float],
        *,
        num_workers: int,
        timeout_s: float,
        answer_mode: str = "strict",
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        """Start the workers and wait until they are ready.

        `functions` maps names or dotted paths to weights; `memory_bytes` limits the private memory of one worker.
        Raises ValueError if a function is unknown or cannot be imported, or a number is out of range.
        """
        _check(functions, num_workers, timeout_s, answer_mode)
        self._lock = threading.Lock()
        self._closed = False
        self._lanes = [
            Lane(functions, timeout_s=timeout_s, answer_mode=answer_mode, memory_bytes=memory_bytes)
            for _ in range(num_workers)
        ]
        try:
            for lane in self._lanes:
                lane.wait_until_ready()
        except BaseException:
            self.close()
            raise

    def grade(self, items: Sequence[GradeItem]) -> list[Grade]:
        """The grades of `items`, in their order. Blocks; calls from several threads take turns.

        Raises RuntimeError if the pool is closed, ValueError if workers cannot be started any more.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("the grader pool is closed")
            batch = Batch(items, len(self._lanes))
            for lane in self._lanes:
                lane.serve(batch)
            if self._closed:  # meanwhile, so that a lane may have ended before it saw the batch
                batch.fail(RuntimeError("the grader pool is closed"))
            try:
                return batch.wait()
            except BaseException as error:
                batch.fail(error)
                raise

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers that run now."""
        return [pid for lane in self._lanes if (pid := lane.pid) is not None]

    def close(self) -> None:
        """Kill the workers and wait for their end. May be called twice."""
        self._closed = True
        for lane in self._lanes:
            lane.stop()
        for lane in self._lanes:
            lane.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def check_reward_functions(functions: Mapping[str, float]) -> None:
    """Make sure that every function can be loaded; a user's module is imported in a process of its own, not here.

    Raises ValueError with all mistakes in one message.
    """
    _check_functions(functions)
    if any(name not in BUILT_IN for name in functions):
        process = GraderProcess(functions, memory_bytes=MEMORY_BYTES)
        try:
            process.wait_until_ready()
        except WorkerDied as error:
            raise ValueError(f"the reward functions cannot be imported: {error}") from error
        finally:
            process.close()


def _check(functions: Mapping[str, float], num_workers: int, timeout_s: float, answer_mode: str) -> None:
    _check_functions(functions)
    if num_workers < 1:
        raise ValueError(f"num_workers is {num_workers}: at least one grader process is needed")
    if not (timeout_s > 0 and math.isfinite(timeout_s)):
        raise ValueError(f"timeout_s is {timeout_s}: it must be a positive number of seconds")
    if answer_mode not in ("strict", "lenient"):
        raise ValueError(f"answer_mode is {answer_mode!r}: it must be 'strict' or 'lenient'")


def _check_functions(functions: Mapping[str, float]) -> None:
    errors = name_errors(functions) if functions else ["no reward function is named"]
    errors += [
        f"the weight of reward function {name!r} is {weight}: it must be finite"
        for name, weight in functions.items()
        if not math.isfinite(weight)
    ]
    if errors:
        raise ValueError("; ".join(errors))
