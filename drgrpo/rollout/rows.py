"""Which request each completion answers: the rows of a sample table, without those whose completion was lost."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

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


def sample_columns(
    rows: Sequence[Row],
    texts: Callable[[Sequence[np.ndarray]], list[str]],
    *,
    seeds: Sequence[int],
    about: Mapping[str, Any],
) -> dict[str, list[Any]]:
    """The sample table's columns before grading.

    Args:
        rows: One or more.
        texts: From token ids to text.
        seeds: The sample seed of each row.
        about: Columns with one value for all rows.
    """
    problems, completions = [row.problem for row in rows], [row.completion for row in rows]
    token_ids = [np.array(completion.token_ids, dtype=np.int32) for completion in completions]
    # What a group shares is made once, and a column of it refers to it.
    groups = {row.group_id: row.problem for row in rows}
    prompt_ids = {group: np.array(problem.prompt_ids, dtype=np.int32) for group, problem in groups.items()}
    further = {group: _as_json(problem.problem.columns) for group, problem in groups.items()}
    columns: dict[str, list[Any]] = {name: [value] * len(rows) for name, value in about.items()} | {
        "problem_id": [problem.id for problem in problems],
        "group_id": [row.group_id for row in rows],
        "sample_index": [row.sample_index for row in rows],
        "seed": list(seeds),
        "question": [problem.problem.question for problem in problems],
        "answer": [problem.problem.answer for problem in problems],
        "columns": [further[row.group_id] for row in rows],
        "prompt": [problem.prompt for problem in problems],
        "prompt_ids": [prompt_ids[row.group_id] for row in rows],
        "completion": texts(token_ids),
        "completion_ids": token_ids,
        "finish_reason": [completion.finish_reason for completion in completions],
    }
    if completions[0].logprobs is not None:
        columns["sampler_logprobs"] = [completion.logprobs for completion in completions]
    return columns


def _as_json(columns: Mapping[str, Any]) -> str:
    """A problem's further columns for the table, which has one type for each of its own; what JSON lacks is text."""
    return json.dumps(columns, default=str, skipkeys=True)
