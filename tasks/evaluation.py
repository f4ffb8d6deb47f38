"""Evaluation as a Prefect task: greedy and sampled completions of the held-out problems, with intervals."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from drgrpo.run import Run
from drgrpo.tables import read_table
from tasks.artifacts import show_evaluation


@task(task_run_name="evaluate-{step}", tags=["evaluate"], retries=1, cache_policy=NO_CACHE)
def evaluate(run: Run, *, step: int) -> dict[str, float]:
    """Evaluate the policy after `step` iterations."""
    with run.timed("evaluate"):
        table = run.evaluation_table(step) or run.cluster.evaluate(step, run.policy_version)
    metrics = run.add_evaluation(step, table)
    show_evaluation(run, read_table(table), metrics, step)
    return metrics
