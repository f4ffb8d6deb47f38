"""The stages of a step as calls to the engines.

The flow process holds this object; samples and weights pass between the engines and never through it.
"""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from ray.exceptions import LocalRayletDiedError, RayError, RaySystemError

from drgrpo.cluster.ahead import Ahead
from drgrpo.cluster.engines import Engines
from drgrpo.cluster.runtime import start_ray, stop_ray
from drgrpo.cluster.waiting import outcomes, results
from drgrpo.config import TrainConfig
from drgrpo.settings import Settings
from drgrpo.sync_check import logprob_differences
from drgrpo.tables import TableRef

Metrics = dict[str, float]
Mode = Literal["greedy", "sampled"]
Stage = Literal["rollout", "reward", "advantage", "update", "push"]


class EngineLost(RuntimeError):
    """A process of the run died or hung. What it held is on disk, so the run goes on once it is opened again."""


class Cluster:
    """One run's engines; made by `open_run`."""

    def __init__(
        self, config: TrainConfig, settings: Settings, *, model_path: Path, run_id: str, run_dir: Path, train: bool
    ) -> None:
        """Start Ray and every engine; without `train` there is no trainer.

        Raises ConfigError when Ray does not give the devices.
        """
        self.config, self._logs = config, run_dir / "logs"
        self._ahead = Ahead()
        try:
            start_ray(settings, self._logs)
            self.engines = Engines(config, settings, model_path, run_id, run_dir, train=train)
            self.data: dict[str, Any] = self.engines.host.call("describe")
            if train:
                if self.engines.on_gpu and not config.rollout.kv_cache_gib:
                    self.engines.wait()  # vLLM measures what it can have, and takes the trainer's memory for its own
                self.engines.start_trainer()
            self.engines.wait()
            if train:
                self.engines.connect()
                self._probes = self.engines.host.call("probes")
        except BaseException as error:
            try:
                self.raise_if_lost(error)
            finally:
                stop_ray()
            raise

    def begin_rollout(self, step: int, policy_version: int) -> None:
        """Have the engines begin with the step: `rollout`, `score` and `advantages` wait for what is asked for here.

        Where the push of the step before has been asked for, they begin when it has ended well.
        """
        host, samplers = self.engines.host, self.engines.rollout
        pushes = self._ahead.see("push", step - 1) if self.has_begun("push", step - 1) else ()
        parts = self._generate(host.start("requests", step), host.start("sampling"), policy_version, pushes)
        seconds = [engine.start("generation_seconds") for engine in samplers]
        # A rollout of a policy is on disk only where the table is that the policy was made from.
        finished = self._ahead.see("advantage", step - 1)[0] if self.has_begun("advantage", step - 1) else None
        table = host.start("write_rollout", step, policy_version, *parts, after=finished)
        # What is waited for comes before what is written of it.
        graded = host.start("grade", table)
        samples = host.start("samples", table, graded)
        scored = host.start("score", table, graded, step)
        advantages = host.start_pair("advantages", scored, samples, step)
        following = {"graded": graded, "reward": scored, "samples": samples, "advantage": advantages}
        self._ahead.begin(step, policy_version, rollout=[table, *seconds], **following)

    def begin_update(self, step: int) -> None:
        """Have the trainer go on with the step as soon as its advantages are there, push what comes of it and compare.

        It does not wait for the tables, which are written meanwhile. `update` and `push` wait for what is asked for
        here. Only where `has_begun("advantage", step)`, and not where samplers sleep meanwhile.
        """
        samples = self._ahead.see("samples", step)
        updates = [rank.start("update", samples, step) for rank in self.engines.ranks]
        self._ahead.add(step, update=updates)  # at once: it must not be asked for again whatever happens
        pushes = [
            rank.start("push", step + 1, update) for rank, update in zip(self.engines.ranks, updates, strict=True)
        ]
        self._ahead.add(step, push=pushes, comparison=self._start_comparison(pushes))

    def has_begun(self, stage: Stage, step: int) -> bool:
        """Whether a stage of this step has been asked for ahead, and nobody has waited for it."""
        return self._ahead.has(stage, step)

    def has_graded(self, step: int, *, within_s: float) -> bool:
        """Whether the step's grading has been asked for ahead, and the trainer's samples are there within so long."""
        if not self.has_begun("reward", step):
            return False
        (samples,) = outcomes([self._ahead.see("samples", step)], within_s)
        return samples is not None and samples.exception() is None

    def rollout(self, step: int, policy_version: int) -> tuple[TableRef, Metrics]:
        """Sample the step's groups from `policy_version`, unless that has begun, and write their table."""
        if not (self.has_begun("rollout", step) and self._ahead.is_of(step, policy_version)):
            self.begin_rollout(step, policy_version)
        table, *seconds = self._results(self._ahead.take("rollout", step))
        return table, {"engine_seconds/generate": max(seconds)}

    def score(self, table: TableRef, step: int) -> TableRef:
        """Grade the step's completions."""
        host, begun = self.engines.host, self._ahead.take("reward", step)
        if not begun:
            begun = host.start("score", table, self._in_update("graded", step) or host.start("grade", table), step)
        scored: TableRef = self._written([begun], step)[0]
        return scored

    def advantages(self, table: TableRef, step: int) -> tuple[TableRef, Metrics]:
        """Rewards to advantages, and the step's sample metrics."""
        host, begun = self.engines.host, self._ahead.take("advantage", step)
        if not begun:
            samples = self._in_update("samples", step) or host.start("samples", table)
            begun = host.start_pair("advantages", table, samples, step)
        finished, metrics = self._written(begun, step)
        return finished, metrics

    def demonstrations(self, step: int) -> tuple[TableRef, Metrics]:
        """The step's table of given completions, and its metrics."""
        result: tuple[TableRef, Metrics] = self.engines.host.call("demonstrations", step)
        return result

    def update(self, table: TableRef, step: int) -> Metrics:
        """The step's optimizer steps."""
        if begun := self._ahead.take("update", step):
            metrics: Metrics = self._results(begun)[0]
            for stage in ("graded", "samples"):
                self._ahead.take(stage, step)
            return metrics
        self._on_samplers("sleep")
        try:
            return self._on_ranks("update", table, step)
        finally:
            self._on_samplers("wake_up")

    def push(self, policy_version: int) -> Metrics:
        """Bring the samplers to the trainer's policy and measure how well they agree with it on fixed tokens."""
        begun = self._ahead.take("push", policy_version - 1)
        metrics: Metrics = self._results(begun)[0] if begun else self._on_ranks("push", policy_version)
        trainer, samplers = self._ahead.take("comparison", policy_version - 1) or self._start_comparison()
        return metrics | logprob_differences(self._results(trainer)[0], self._results(samplers))

    def _start_comparison(self, pushes: Sequence[Any] = ()) -> tuple[list[Any], list[Any]]:
        """References to the probes' logprobs, of the ranks and of the samplers, which score after their rank's push."""
        ranks, engines = self.engines.ranks, self.engines.rollout
        trainer = [rank.start("score", self._probes, after=push) for rank, push in zip_longest(ranks, pushes)]
        samplers = [
            engine.start("score", self._probes, after=push)
            for engine, push in zip_longest(engines, pushes[: len(engines)])
        ]
        return trainer, samplers

    def evaluate(self, step: int, policy_version: int) -> TableRef:
        """Sample and grade the evaluation set; returns its table."""
        host = self.engines.host
        modes: list[Mode] = ["greedy", "sampled"] if self.config.evaluation.greedy else ["sampled"]
        parts = []
        for mode in modes:
            sampling = host.start("sampling", mode, evaluation=True)
            parts += self._generate(host.start("evaluation_requests", mode), sampling, policy_version)
        table: TableRef = host.call("write_evaluation", step, policy_version, modes, *parts)
        return table

    def export(self, directory: Path) -> Path:
        """Write the policy as a Hugging Face directory."""
        return Path(results([rank.start("export", str(directory)) for rank in self.engines.ranks])[0])

    def save_checkpoint(self, directory: Path, state: dict[str, Any]) -> Metrics:
        """Copy the training state off the devices; it is written while training goes on."""
        return self._on_ranks("save_checkpoint", str(directory), state)

    def wait_for_checkpoint(self) -> Metrics:
        """Until the last checkpoint is whole on disk."""
        return self._on_ranks("wait_for_checkpoint")

    def load_checkpoint(self, directory: Path) -> dict[str, Any]:
        """Continue from a checkpoint; returns the state that was saved with it."""
        states: list[dict[str, Any]] = results(
            [rank.start("load_checkpoint", str(directory)) for rank in self.engines.ranks]
        )
        return states[0]

    def weight_shapes(self) -> dict[str, list[int]]:
        """Shapes of the policy's weights, which tell a foreign checkpoint."""
        shapes: dict[str, list[int]] = self.engines.ranks[0].call("weight_shapes")
        return shapes

    def raise_if_lost(self, error: BaseException) -> None:
        """Raise EngineLost when the death of an engine or of Ray is behind `error`, also while they start."""
        if isinstance(error, RayError) and (loss := self._loss(error)):
            raise EngineLost(loss) from error

    def _loss(self, error: RayError) -> str:
        """What died behind `error`; empty when nothing did."""
        if isinstance(error, (RaySystemError, LocalRayletDiedError)):
            return f"Ray itself died: {error}"
        try:
            lost = self.engines.lost() if hasattr(self, "engines") else []  # Ray may fail before the first is there
        except RayError as silence:
            return f"Ray itself died: {silence}"
        return f"{', '.join(lost)} died; what they printed is in {self._logs}" if lost else ""

    def close(self) -> None:
        """Stop every engine and give the devices back."""
        self.engines.stop()
        stop_ray()

    def _generate(self, requests: Any, sampling: Any, policy_version: int, pushes: Sequence[Any] = ()) -> list[Any]:
        """References to the engines' completions; `requests` and `sampling` are references too, as are `pushes`."""
        engines = self.engines.rollout
        options = {"policy_version": policy_version, "num_parts": len(engines)}
        return [
            engine.start("generate", requests, sampling, part=index, after=push, **options)
            for index, (engine, push) in enumerate(zip_longest(engines, pushes[: len(engines)]))
        ]

    def _results(self, references: Any) -> list[Any]:
        """As `results`; after a failure nothing that was asked for ahead is used any more."""
        try:
            return results(references)
        except BaseException:
            self._ahead.forget()
            raise

    def _in_update(self, stage: str, step: int) -> Any | None:
        """The reference to what an update that goes on is made of; None where there is none."""
        return self._ahead.see(stage, step) if self.has_begun("update", step) else None

    def _written(self, references: Any, step: int) -> list[Any]:
        """As `_results`; where an update goes on, only a table could not be written, and the update counts."""
        if not self.has_begun("update", step):
            return self._results(references)
        try:
            return results(references)
        except BaseException:
            self._ahead.take("advantage", step)  # it was to be made of the table that is missing
            raise

    def _on_samplers(self, method: Literal["sleep", "wake_up"]) -> None:
        """Free the samplers' device memory for the update, or give it back, where the configuration asks for it."""
        if self.config.placement.sleep:
            results([engine.start(method) for engine in self.engines.rollout])

    def _on_ranks(self, method: str, *args: Any) -> Metrics:
        """Call a collective on every rank; rank 0 speaks for all."""
        metrics: Metrics = results([rank.start(method, *args) for rank in self.engines.ranks])[0]
        return metrics
