"""The graders of a run: from completions to reward columns, also while something else goes on."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from drgrpo.config import TrainConfig
from drgrpo.rewards.grade import GradeItem
from drgrpo.rewards.pool import GraderPool
from drgrpo.scoring import reward_columns

Rewards = dict[str, list[Any]]


class Grader:
    """The pool of grader processes, and a thread that waits for it."""

    def __init__(self, config: TrainConfig) -> None:
        """Start the processes. Raises ValueError for a reward function that cannot be imported."""
        self._config = config
        self._pool = GraderPool(
            config.reward.functions,
            num_workers=config.reward.num_workers,
            timeout_s=config.reward.timeout_s,
            answer_mode=config.reward.answer_mode,
        )
        self._thread = ThreadPoolExecutor(1)

    def rewards(self, rows: Mapping[str, Sequence[Any]]) -> Rewards:
        """The columns that grading adds to `rows` of completions; raises what `reward_columns` raises."""
        texts = zip(rows["completion"], rows["answer"], rows["question"], rows["columns"], strict=True)
        items = [GradeItem(text, answer, question, json.loads(columns)) for text, answer, question, columns in texts]
        return reward_columns(rows, self._pool.grade(items), self._config)

    def begin(self, rows: Mapping[str, Sequence[Any]]) -> Future[Rewards]:
        """`rewards`, while the caller goes on."""
        return self._thread.submit(self.rewards, rows)

    def close(self) -> None:
        """Stop the processes; what is being graded fails."""
        self._pool.close()
        self._thread.shutdown()
