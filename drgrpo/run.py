"""One training run: its directory, its engines, its place in MLflow, and what is known of each step.

The directory is the run's memory. A stage whose table lies there whole is not run again, and the updates of stored
tables can be replayed, so the policy at any step follows from what is on disk.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drgrpo.cluster.cluster import Cluster, Metrics
from drgrpo.config.overrides import recipe_digest
from drgrpo.description import Description
from drgrpo.durable import replace_json
from drgrpo.metrics import EvaluationSummary, evaluation_metrics, paired_difference
from drgrpo.notice import Notice
from drgrpo.report import plot_run, read_history, write_history
from drgrpo.savepoints import Savepoints
from drgrpo.settings import Settings
from drgrpo.tables import TableRef, find_table, named_table, read_table
from drgrpo.tracking import Tracker


class Run:
    """State that the stages share; made by `open_run`."""

    def __init__(
        self,
        description: Description,
        settings: Settings,
        run_id: str,
        name: str,
        tracker: Tracker,
        cluster: Cluster,
        notice: Notice,
    ) -> None:
        self.config, self.settings, self.run_id, self.name = description.config, settings, run_id, name
        self.tracker, self.cluster, self.notice = tracker, cluster, notice
        self.directory = settings.runs_dir / run_id
        self.first_step, self.policy_version = description.first_step, 0
        digests = {recipe_digest(self.config), description.origin_digest} - {""}
        evaluated = [(int(record["step"]), record) for record in read_history(self.directory / "evaluations.jsonl")]
        self.savepoints = Savepoints(self.config, self.directory / "checkpoints", cluster, digests, evaluated)
        self.evaluations: dict[int, EvaluationSummary] = {}
        self._metrics: Metrics = {}
        self._step_started = time.perf_counter()
        self._is_whole = False

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Record the seconds of a stage as `seconds/<stage>`."""
        started = time.perf_counter()
        yield
        self.record({f"seconds/{stage}": time.perf_counter() - started})

    def begin_step(self) -> None:
        """Start the step's clock; what came before belongs to no step."""
        self._metrics, self._step_started = {}, time.perf_counter()

    def record(self, metrics: Mapping[str, float]) -> None:
        """Add to the metrics of the present step."""
        self._metrics |= metrics

    def record_rollout_speed(self) -> None:
        """Tokens per second of generation, unless the step's table came from disk."""
        if seconds := self._metrics.get("engine_seconds/generate"):
            self.record({"rollout/tokens_per_s": self._metrics["rollout/completion_tokens"] / seconds})

    def update(self, table: TableRef, step: int) -> None:
        """Take the step's optimizer steps; until `commit` the state on disk and the trainer's are not one."""
        self.notice.hold()
        self._is_whole = False
        self.record(self.cluster.update(table, step))
        self.policy_version = step + 1

    def begin_update(self, step: int) -> None:
        """Have update, push and the next rollout follow the engines' advantages, if they have begun with them."""
        has_begun = self.cluster.has_begun
        # Prefect may try the stage that calls this again: an update is asked for once.
        if has_begun("advantage", step) and not has_begun("update", step) and not self.config.placement.sleep:
            self.notice.hold()
            self._is_whole = False
            self.cluster.begin_update(step)
            self._begin_rollout(step + 1, self.policy_version + 1)

    def commit(self, step: int) -> Metrics:
        """Close the step: one batch to MLflow and one line to history.jsonl; returns the step's metrics."""
        seconds = time.perf_counter() - self._step_started - self._metrics.get("seconds/evaluate", 0.0)
        self.record({"seconds/step": seconds, "policy_version": self.policy_version})
        metrics = dict(sorted(self._metrics.items()))
        self.tracker.log_metrics(metrics, step)
        if table := self.table(step, "advantage"):
            self.tracker.log_artifact(Path(table.path), f"tables/{step:06d}")
        write_history(self.directory / "history.jsonl", {"step": step, **metrics})
        self._is_whole = True
        self.notice.release()
        return metrics

    def begin_rollout(self, step: int) -> None:
        """Have the samplers begin with a step while the one before is recorded, where nothing else is due on them."""
        if not self.cluster.has_begun("rollout", step):
            self._begin_rollout(step, self.policy_version)

    def _begin_rollout(self, step: int, policy_version: int) -> None:
        is_last, idle = step >= self.config.total_steps, not self.is_evaluation_due(step)
        if not is_last and idle and self.table(step, "rollout") is None:
            self.cluster.begin_rollout(step, policy_version)

    def table(self, step: int, stage: str, *, source: TableRef | None = None) -> TableRef | None:
        """The stage's table of a step if it is there and whole, and made from `source` where that is given."""
        return find_table(self._path(step, stage), source=source)

    def evaluation_table(self, step: int) -> TableRef | None:
        """The evaluation's table after `step` steps if it is there and whole."""
        return find_table(self.directory / "evaluations" / f"{step:06d}.parquet")

    def add_evaluation(self, step: int, table: TableRef) -> Metrics:
        """Summarise an evaluation, log it and keep it for paired differences."""
        k = self.config.evaluation.samples_per_problem
        summary = evaluation_metrics(read_table(table), k=k)
        self.evaluations[step] = summary
        asked = self.cluster.data["evaluation"]["num_problems"] * (k + self.config.evaluation.greedy)
        metrics = summary.metrics() | {"evaluation/lost_samples": float(asked - table.num_rows)}
        self.savepoints.add_evaluation(step, metrics)
        self.tracker.log_metrics(metrics, step)
        write_history(self.directory / "evaluations.jsonl", {"step": step, **metrics})
        return metrics

    def restore(self) -> int:
        """Load the newest whole checkpoint; returns the number of steps that it has done, 0 without one.

        Raises CheckpointError when a fork's own checkpoint cannot be loaded: it must not start from the model.
        """
        # The checkpoint of a step that was not committed would leave a hole in the history.
        state = self.savepoints.restore(at_most=self.num_committed(), at_least=self.first_step)
        self.policy_version = int(state.get("policy_version", 0))
        self._is_whole = True
        return self.policy_version

    def save_checkpoint(self, num_done: int) -> None:
        """Save the training state after `num_done` steps, once the one before it is whole."""
        state = {
            "step": num_done,
            "policy_version": self.policy_version,
            "optimizer_step": num_done * self.config.updates_per_step,
            "run_id": self.run_id,
            "config_digest": recipe_digest(self.config),
            "tables": {str(step): ref.sha256 for step in range(num_done) if (ref := named_table(self._path(step)))},
        }
        self.record(self.savepoints.save(state))

    def save_now(self) -> None:
        """Save the training state and wait until it is on disk, unless it is there or an update was interrupted."""
        if self._is_whole and not self.savepoints.has(self.policy_version):
            self.save_checkpoint(self.policy_version)
            self.savepoints.settle()

    def num_committed(self) -> int:
        """Steps that are done for good, counted from the model."""
        return max((int(record["step"]) + 1 for record in self.history()), default=self.first_step)

    def is_evaluation_due(self, num_done: int) -> bool:
        """Whether the policy after `num_done` steps is evaluated."""
        every = self.config.evaluation.every_steps
        return num_done in (self.first_step, self.config.total_steps) or (every > 0 and num_done % every == 0)

    def history(self) -> list[dict[str, float]]:
        """The committed steps."""
        return read_history(self.directory / "history.jsonl")

    def finish(self) -> dict[str, Any]:
        """Plot the run and write its summary, with the paired difference of evaluation before and after."""
        before, after = self.evaluations[self.first_step], self.evaluations[self.config.total_steps]
        plot = self.directory / "report.png"
        plot_run(self.history(), read_history(self.directory / "evaluations.jsonl"), plot, title=self.name)
        self.tracker.log_artifact(plot)
        difference = paired_difference(before, after)
        summary = {
            "run_id": self.run_id,
            "before": before.metrics(),
            "after": after.metrics(),
            "difference": list(difference),
            "plot": str(plot),
            "mlflow_run_id": self.tracker.run_id,
            "mlflow_url": self.tracker.run_url(self.settings.mlflow_ui_url),
        }
        path = self.directory / "summary.json"
        replace_json(path, summary)
        self.tracker.log_artifact(path)
        self.tracker.log_metrics({"evaluation/difference": difference[0]}, self.config.total_steps)
        return summary

    def _path(self, step: int, stage: str = "advantage") -> Path:
        return self.directory / "steps" / f"{step:06d}" / f"{stage}.parquet"
