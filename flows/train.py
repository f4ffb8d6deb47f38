"""The training loop: rollout, reward, advantage, update, push, and now and then evaluation. This is all of it."""

from typing import Any

from prefect import flow

from drgrpo.config import TrainConfig
from drgrpo.run import Run
from drgrpo.start import checked_run
from flows.identity import own_id
from flows.recovery import beginning, to_the_end
from tasks.artifacts import show_step, show_summary, start_progress
from tasks.checkpoint import checkpoint, export, restore
from tasks.evaluation import evaluate
from tasks.health import check_health
from tasks.stages import advantage, push, reward, rollout, update


@flow(name="drgrpo", description="Train a language model with Dr. GRPO", validate_parameters=True)
def train(config: TrainConfig, overrides: dict[str, Any] | None = None, resume_from: str = "") -> dict[str, Any]:
    """Train a policy.

    Args:
        config: The whole configuration; a deployment's values are its defaults.
        overrides: Dotted path to value, for example `{"optimizer.lr": 2e-6, "rollout.group_size": 16}`.
        resume_from: Id of a run to go on with, or `<run id>@<step>` to fork it at a checkpoint, with other overrides.
    """
    config, settings, origin = checked_run(config, overrides or {}, resume_from, own_id=own_id())
    return to_the_end(iterate, config, settings, beginning(origin, config, settings))


def iterate(run: Run) -> dict[str, Any]:
    """The loop itself; returns the summary."""
    progress = start_progress(run)
    first = restore(run)
    check_health(run, step=first - 1)
    push(run, step=first)
    for done in sorted({run.first_step, first}):
        if run.is_evaluation_due(done):
            evaluate(run, step=done)
    for step in range(first, run.config.total_steps):
        samples = rollout(run, step=step)
        samples = reward(run, samples, step=step)
        samples = advantage(run, samples, step=step)
        update(run, samples, step=step)
        push(run, step=step + 1)
        run.begin_rollout(step + 1)
        if run.is_evaluation_due(step + 1):
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
