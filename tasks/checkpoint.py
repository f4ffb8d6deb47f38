"""Training state and policy on disk: checkpoints to continue from, and the export that others load."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from drgrpo.run import Run


@task(task_run_name="restore", tags=["checkpoint"], cache_policy=NO_CACHE)
def restore(run: Run) -> int:
    """Load the newest whole checkpoint; returns the number of steps that are done."""
    return run.restore()


@task(task_run_name="checkpoint-{step}", tags=["checkpoint"], cache_policy=NO_CACHE)
def checkpoint(run: Run, *, step: int) -> None:
    """Save the training state after `step` iterations; the writing itself overlaps the next ones."""
    with run.timed("checkpoint"):
        run.save_checkpoint(step)


@task(task_run_name="export-{step}", tags=["checkpoint"], cache_policy=NO_CACHE)
def export(run: Run, *, step: int) -> None:
    """Write the policy as a Hugging Face directory and record its place in MLflow."""
    run.savepoints.settle()
    if run.config.checkpoint.export:
        directory = run.cluster.export(run.directory / "policy")
        run.tracker.log_policy(directory, step, run.evaluations[step].metrics())
