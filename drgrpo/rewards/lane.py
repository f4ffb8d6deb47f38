"""One worker of the grader pool and the thread that feeds it, watches its clock, and replaces it when it is lost."""

import math
import queue
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from drgrpo.rewards.batch import Batch
from drgrpo.rewards.grade import Grade, GradeStatus
from drgrpo.rewards.process import GraderProcess, WorkerDied

_MAX_DEATHS = 2  # A process may be killed from outside, so a completion gets a second, fresh one.
_MAX_LOST_SENDS = 5
_MAX_STARTS = 3
_NO_REWARDS: Mapping[str, float] = {}


class Lane:
    """Grades chunks of a batch, one after the other, in a process that its own thread starts.

    The thread lives as long as the pool: a process ends with the thread that started it, not only with its parent.
    """

    def __init__(
        self, functions: Mapping[str, float], *, timeout_s: float, answer_mode: str, memory_bytes: int
    ) -> None:
        self._weights = dict(functions)
        self._timeout_s = timeout_s
        self._answer_mode = answer_mode
        self._memory_bytes = memory_bytes
        self._batches: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._ready: Future[None] = Future()
        self._process: GraderProcess | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="grader", daemon=True)
        self._thread.start()

    def wait_until_ready(self) -> None:
        """Block until the first process is up. Raises ValueError if it cannot grade."""
        self._ready.result()

    def serve(self, batch: Batch) -> None:
        """Work on `batch` until nothing of it is left."""
        self._batches.put(batch)

    def stop(self) -> None:
        """Kill the process and end the thread soon; `join` waits for it."""
        self._stopped = True
        self._batches.put(None)
        if process := self._process:
            process.kill()

    def join(self) -> None:
        """Wait until process and thread are gone."""
        self._thread.join()

    @property
    def pid(self) -> int | None:
        """Process id of the worker, None while there is none."""
        return process.pid if (process := self._process) else None

    def _run(self) -> None:
        try:
            self._start()
            self._ready.set_result(None)
            while (batch := self._batches.get()) is not None:
                try:
                    self._work(batch)
                except BaseException as error:
                    batch.fail(error)
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)
        finally:
            self._drop()

    def _work(self, batch: Batch) -> None:
        num_lost = 0
        while batch.wait_for_work() and not self._stopped:
            chunk = batch.take()
            try:
                process = self._process or self._start()
                process.send([batch.items[index] for index in chunk], self._answer_mode, self._timeout_s)
            except (WorkerDied, TimeoutError):
                self._drop()
                batch.give_back(chunk)
                num_lost += 1
                if num_lost > _MAX_LOST_SENDS:
                    batch.fail(RuntimeError("grader processes die faster than they can be given work"))
            else:
                num_lost = 0
                self._collect(batch, process, chunk)
        if self._stopped:
            batch.fail(RuntimeError("the grader pool was closed"))

    def _collect(self, batch: Batch, process: GraderProcess, chunk: list[int]) -> None:
        for position, index in enumerate(chunk):
            try:
                grade = self._grade(process.receive(self._timeout_s))
            except TimeoutError:
                self._drop()
                batch.finish(index, self._zero("timeout", f"the grader took over {self._timeout_s:g} s"))
                return batch.give_back(chunk[position + 1 :])
            except WorkerDied as death:
                self._drop()
                if batch.count_death(index) < _MAX_DEATHS:
                    return batch.give_back(chunk[position:])
                batch.finish(index, self._zero("error", str(death)))
                return batch.give_back(chunk[position + 1 :])
            batch.finish(index, grade)
        return None

    def _start(self) -> GraderProcess:
        for _ in range(_MAX_STARTS):
            self._process = process = GraderProcess(self._weights, memory_bytes=self._memory_bytes)
            if self._stopped:
                process.kill()
            try:
                process.wait_until_ready()
                return process
            except WorkerDied as death:
                self._drop()
                reason = str(death)
        raise ValueError(f"the grader process does not start: {reason}")

    def _drop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.close()

    def _grade(self, reply: Mapping[str, Any]) -> Grade:
        rewards: dict[str, float] = reply["rewards"]
        if "error" in reply:
            return self._zero("error", reply["error"], rewards)
        total = math.fsum(weight * rewards[name] for name, weight in self._weights.items())
        if not math.isfinite(total):
            return self._zero("error", f"the weighted sum of the rewards is {total}", rewards)
        return Grade(total, rewards, "ok")

    def _zero(self, status: GradeStatus, message: str, rewards: Mapping[str, float] = _NO_REWARDS) -> Grade:
        return Grade(0.0, {name: rewards.get(name, 0.0) for name in self._weights}, status, message)
