"""Supervised training on demonstrations with the update of reinforcement learning, which can start from its export."""

from typing import Any

from prefect import flow

from drgrpo.config import TrainConfig
from drgrpo.config.checks import DEMONSTRATION_CHECKS
from drgrpo.run import Run
from drgrpo.start import checked_run
from flows.identity import own_id
from flows.recovery import beginning, to_the_end
from tasks.artifacts import show_step, show_summary, start_progress
from tasks.checkpoint import checkpoint, export, restore
from tasks.demonstrations import demonstrations
from tasks.evaluation import evaluate
from tasks.health import check_health
from tasks.stages import push, update


@flow(name="drgrpo-sft", description="Train a language model on demonstrations", validate_parameters=True)
def sft(config: TrainConfig, overrides: dict[str, Any] | None = None, resume_from: str = "") -> dict[str, Any]:
    """Train a policy on given completions; its export is a `model.path` for the flow `drgrpo`.

    Args:
        config: The whole configuration; a deployment's values are its defaults.
        overrides: Dotted path to value, for example `{"optimizer.lr": 2e-5, "data.completion_field": "solution"}`.
        resume_from: Id of a run to go on with, or `<run id>@<step>` to fork it at a checkpoint, with other overrides.
    """
    config, settings, origin = checked_run(
        config, overrides or {}, resume_from, own_id=own_id(), checks=DEMONSTRATION_CHECKS
    )
    return to_the_end(iterate, config, settings, beginning(origin, config, settings))


def iterate(run: Run) -> dict[str, Any]:
    """The loop itself; returns the summary. The sampler has old weights except while it evaluates."""
    progress = start_progress(run)
    first = restore(run)
    check_health(run, step=first - 1)
    push(run, step=first)
    for done in sorted({run.first_step, first}):
        if run.is_evaluation_due(done):
            evaluate(run, step=done)
    for step in range(first, run.config.total_steps):
        samples = demonstrations(run, step=step)
        update(run, samples, step=step)
        if run.is_evaluation_due(step + 1):
            push(run, step=step + 1)
            evaluate(run, step=step + 1)
        if run.savepoints.is_due(step + 1):
            checkpoint(run, step=step + 1)
        run.commit(step)
        show_step(run, progress, step)
        check_health(run, step=step)
    export(run, step=run.config.total_steps)
    summary = run.finish()
    show_summary(run, summary)
    return summary
