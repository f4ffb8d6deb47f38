"""Problems, their identity, and which of them each step sees: a pure function of dataset, seed and step."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Generic, Protocol, TypeVar

from drgrpo.data.errors import DataError


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its reference answer. `id`: 16 hex digits of a hash of both; `columns`: the rest of its row."""

    id: str
    question: str
    answer: str
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class TokenizedProblem:
    """A problem with the prompt made of it. `prompt_ids`: what the sampler is given, one BOS at most."""

    problem: Problem
    prompt: str
    prompt_ids: list[int]

    @property
    def id(self) -> str:
        """The problem's id."""
        return self.problem.id


class Identified(Protocol):
    """Anything with a stable id."""

    @property
    def id(self) -> str:
        """Unique among the problems of a set."""
        ...


T = TypeVar("T", bound=Identified)


class ProblemSet(Generic[T]):
    """Problems in an order that depends on nothing but their ids, the seed and the step, so that a resume is exact.

    The order is an endless row of epochs, each holding every problem once, in an order keyed by (seed, epoch). Step k
    takes positions [k * prompts_per_step, (k + 1) * prompts_per_step), across the border of an epoch where need be.

    Raises:
        DataError: No problems, two with one id, or a step without prompts.
    """

    def __init__(self, problems: Sequence[T], *, prompts_per_step: int, seed: int) -> None:
        if not problems:
            raise DataError("data.train: no problems are left to train on")
        if prompts_per_step < 1:
            raise DataError(f"data.prompts_per_step = {prompts_per_step}: must be at least 1")
        self._problems = {problem.id: problem for problem in problems}
        if len(self._problems) != len(problems):
            raise DataError("data.train: two problems have the same id; drop the duplicates first")
        self._ids = tuple(self._problems)
        self._prompts_per_step = prompts_per_step
        self._seed = seed

    def __len__(self) -> int:
        return len(self._ids)

    def problems(self, step: int) -> list[T]:
        """The problems of `step` (>= 0); no problem twice unless there are fewer than prompts_per_step."""
        chosen: list[str] = []
        position = step * self._prompts_per_step
        while len(chosen) < self._prompts_per_step:
            epoch, offset = divmod(position + len(chosen), len(self))
            chosen += self._order(epoch)[offset : offset + self._prompts_per_step - len(chosen)]
        return [self._problems[problem_id] for problem_id in chosen]

    def _order(self, epoch: int) -> tuple[str, ...]:
        """The ids of one epoch in order, its start free of what the step across its border has seen already.

        Clearing an epoch's start moves ids among its first prompts_per_step places only. So an epoch depends on the
        one before it, and further back only where the end of that one lies within those places: in tiny sets.
        """
        if len(self) < self._prompts_per_step:
            return _permutation(self._ids, self._seed, epoch)
        start = max(epoch - 1, 0)
        while start > 0 and self._num_in_border_step(start) > len(self) - self._prompts_per_step:
            start -= 1
        order = _permutation(self._ids, self._seed, start)
        for later in range(start + 1, epoch + 1):
            seen = order[len(self) - self._num_in_border_step(later - 1) :]
            plain = _permutation(self._ids, self._seed, later)
            order = _start_without(seen, plain, self._prompts_per_step - len(seen))
        return order

    def _num_in_border_step(self, epoch: int) -> int:
        """How many of the last ids of `epoch` fall in a step that goes on into the next epoch."""
        return (epoch + 1) * len(self) % self._prompts_per_step


@lru_cache(maxsize=8)
def _permutation(ids: tuple[str, ...], seed: int, epoch: int) -> tuple[str, ...]:
    # Sorting by hash, unlike a generator's shuffle, is the same on every platform and version.
    return tuple(sorted(ids, key=lambda problem_id: _hash(f"{seed}/{epoch}/{problem_id}")))


def _start_without(seen: tuple[str, ...], order: tuple[str, ...], num_start: int) -> tuple[str, ...]:
    """`order` with the first `num_start` ids outside `seen` moved to its start."""
    excluded = set(seen)
    start = [problem_id for problem_id in order if problem_id not in excluded][:num_start]
    taken = set(start)
    return (*start, *(problem_id for problem_id in order if problem_id not in taken))


def make_problem(question: str, answer: str, columns: Mapping[str, Any] | None = None) -> Problem:
    """A problem with its content hash: the first 16 hex digits of sha256(question, NUL, answer)."""
    digest = hashlib.sha256(f"{question}\0{answer}".encode()).hexdigest()
    return Problem(digest[:16], question, answer, columns or {})


def sample_seed(run_seed: int, step: int, problem_id: str, sample_index: int) -> int:
    """Seed in [0, 2**63) of one completion, a hash of its arguments: the same whatever else is sampled beside it."""
    return int.from_bytes(_hash(f"{run_seed}/{step}/{problem_id}/{sample_index}")) >> 1


def dataset_digest(problems: Iterable[Identified]) -> str:
    """Hex sha256 over the ids in order."""
    return hashlib.sha256("\n".join(problem.id for problem in problems).encode()).hexdigest()


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
