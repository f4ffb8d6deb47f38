"""The stage that stands for rollout, reward and advantage where the completions are given."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from drgrpo.run import Run
from drgrpo.tables import TableRef


@task(task_run_name="demonstrations-{step}", tags=["demonstrations"], retries=1, cache_policy=NO_CACHE)
def demonstrations(run: Run, *, step: int) -> TableRef:
    """Tokenise the step's given completions, unless their table is there."""
    run.begin_step()
    with run.timed("demonstrations"):
        table, metrics = run.cluster.demonstrations(step)
    run.record(metrics)
    return table
