"""Which request each completion answers: the rows of a sample table, without those whose completion was lost."""

from collections.abc import Sequence
from dataclasses import dataclass

from drgrpo.data.problems import TokenizedProblem
from drgrpo.rollout.sampling import Completion


@dataclass(frozen=True, slots=True)
class Row:
    """A completion and what it was sampled for; `group_id` is the position of its problem."""

    group_id: int
    problem: TokenizedProblem
    sample_index: int
    completion: Completion


def answered(
    problems: Sequence[TokenizedProblem], completions: Sequence[Completion | None], *, samples: int
) -> list[Row]:
    """The rows of `problems` with `samples` requests each; `completions` holds one for each request, None if lost.

    Raises RuntimeError when all were lost.
    """
    asked = [(group, problem, index) for group, problem in enumerate(problems) for index in range(samples)]
    pairs = zip(asked, completions, strict=True)
    rows = [Row(*request, completion) for request, completion in pairs if completion is not None]
    if not rows:
        raise RuntimeError(
            f"the sampler lost all of the {len(asked)} completions that it was asked for; what it printed is in the "
            "run's logs/"
        )
    return rows
