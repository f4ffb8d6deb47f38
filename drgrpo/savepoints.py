"""When the training state is saved, which savings stay, and which one a run continues from."""

import logging
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from drgrpo.checkpoints import checkpoint_path, mark_best, newest_whole, prune
from drgrpo.checkpoints.directory import looks_whole
from drgrpo.cluster.cluster import Cluster, Metrics
from drgrpo.config import TrainConfig

logger = logging.getLogger(__name__)

_BEST_BY = "evaluation/avg_at_k"


class Savepoints:
    """The checkpoints of one run.

    Args:
        config: Cadence and number of those kept.
        root: Their directory.
        cluster: Whose trainer is saved.
        digests: Recipe digests that a checkpoint to continue from may carry: the run's own, and of what it forked.
    """

    def __init__(self, config: TrainConfig, root: Path, cluster: Cluster, digests: Collection[str]) -> None:
        self._config, self._root, self._cluster, self._digests = config, root, cluster, digests
        self._saved_at = time.monotonic()
        self._evaluations: dict[int, float] = {}

    def is_due(self, num_done: int) -> bool:
        """Whether the state after `num_done` steps is saved, by steps or by minutes."""
        cadence, is_last = self._config.checkpoint, num_done == self._config.total_steps
        if cadence.every_steps and (is_last or num_done % cadence.every_steps == 0):
            return True
        return cadence.every_minutes > 0 and time.monotonic() - self._saved_at >= 60 * cadence.every_minutes

    def restore(self, at_most: int) -> dict[str, Any]:
        """Load the newest whole checkpoint of at most that many steps; returns its state, empty without one."""
        path, _, skipped = newest_whole(
            self._root, config_digests=self._digests, shapes=self._cluster.weight_shapes(), at_most=at_most
        )
        for reason in skipped:
            logger.warning("checkpoint skipped: %s", reason)
        return self._cluster.load_checkpoint(path) if path else {}

    def save(self, state: dict[str, Any]) -> Metrics:
        """Save the training state once the checkpoint before it is whole; returns its seconds."""
        settled = self.settle()
        self._saved_at = time.monotonic()
        return settled | self._cluster.save_checkpoint(checkpoint_path(self._root, state["step"]), state)

    def has(self, num_done: int) -> bool:
        """Whether the state after `num_done` steps is on disk."""
        return looks_whole(checkpoint_path(self._root, num_done))

    def settle(self) -> Metrics:
        """Wait until the last checkpoint is whole, then drop those that need not be kept."""
        written = self._cluster.wait_for_checkpoint()
        if written:
            self._mark_best()
            prune(self._root, self._config.checkpoint.keep_last)
        return written

    def add_evaluation(self, num_done: int, metrics: Metrics) -> None:
        """Note how good the policy after `num_done` steps is: the best one's checkpoint stays."""
        self._evaluations[num_done] = metrics[_BEST_BY]
        self._mark_best()

    def _mark_best(self) -> None:
        for num_done, value in sorted(self._evaluations.items()):
            mark_best(self._root, num_done, _BEST_BY, value)
