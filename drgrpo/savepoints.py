"""When the training state is saved, which savings stay, and which one a run continues from."""

import logging
import math
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from drgrpo.checkpoints import CheckpointError, checkpoint_path, mark_best, newest_whole, prune
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
        evaluations: Those of earlier processes: steps done, and metrics.
    """

    def __init__(
        self,
        config: TrainConfig,
        root: Path,
        cluster: Cluster,
        digests: Collection[str],
        evaluations: Iterable[tuple[int, Metrics]],
    ) -> None:
        self._config, self._root, self._cluster, self._digests = config, root, cluster, digests
        self._saved_at = time.monotonic()
        self._evaluations = {num_done: metrics[_BEST_BY] for num_done, metrics in evaluations}

    def is_due(self, num_done: int) -> bool:
        """Whether the state after `num_done` steps is saved: by steps, by minutes, or as the best evaluated so far."""
        cadence, is_last = self._config.checkpoint, num_done == self._config.total_steps
        if not cadence.has_cadence:
            return False
        if cadence.every_steps and (is_last or num_done % cadence.every_steps == 0):
            return True
        if cadence.every_minutes and time.monotonic() - self._saved_at >= 60 * cadence.every_minutes:
            return True
        return self._is_best_so_far(num_done)

    def restore(self, at_most: int, *, at_least: int = 0) -> dict[str, Any]:
        """Load the newest whole checkpoint of at most that many steps; returns its state, empty without one.

        Raises CheckpointError without one when the run starts after `at_least` steps, and not from the model.
        """
        path, _, skipped = newest_whole(
            self._root, config_digests=self._digests, shapes=self._cluster.weight_shapes(), at_most=at_most
        )
        for reason in skipped:
            logger.warning("checkpoint skipped: %s", reason)
        if path is None and at_least:
            reasons = "; ".join(skipped) or "there is none"
            raise CheckpointError(f"the run starts after {at_least} steps, and has no checkpoint of them: {reasons}")
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

    def _is_best_so_far(self, num_done: int) -> bool:
        # A replayed run knows evaluations from beyond the present step.
        before = [value for step, value in self._evaluations.items() if step < num_done and math.isfinite(value)]
        value = self._evaluations.get(num_done, math.nan)
        return math.isfinite(value) and all(value > other for other in before)

    def _mark_best(self) -> None:
        for num_done, value in sorted(self._evaluations.items()):
            mark_best(self._root, num_done, _BEST_BY, value)
