"""The stages of an iteration as Prefect tasks: one library call each, timed and recorded.

A stage that writes a table may be retried and is skipped when its table is already there, made from the table that it
would be given. One that the engines have begun with, which may have written its table by now, is waited for. Update and
push change the engines, so they are never cached and never retried.
"""

from prefect import task
from prefect.cache_policies import NO_CACHE

from drgrpo.run import Run
from drgrpo.tables import TableRef

# Grading that ends so soon is not left to the next task: Prefect's server may keep that waiting for two seconds.
_SOON_S = 0.25


@task(task_run_name="rollout-{step}", tags=["rollout"], retries=1, cache_policy=NO_CACHE)
def rollout(run: Run, *, step: int) -> TableRef:
    """Sample the step's groups with vLLM."""
    run.begin_step()
    if not run.cluster.has_begun("rollout", step) and (done := run.table(step, "rollout")):
        return done
    with run.timed("rollout"):
        table, metrics = run.cluster.rollout(step, run.policy_version)
    run.record(metrics)
    if run.cluster.has_graded(step, within_s=_SOON_S):
        run.begin_update(step)
    return table


@task(task_run_name="reward-{step}", tags=["reward"], retries=1, cache_policy=NO_CACHE)
def reward(run: Run, table: TableRef, *, step: int) -> TableRef:
    """Grade the completions in killable processes; what follows them then needs the flow no more."""
    has_begun = run.cluster.has_begun
    if not (has_begun("reward", step) or has_begun("update", step)) and (
        done := run.table(step, "reward", source=table)
    ):
        return done
    with run.timed("reward"):
        scored = run.cluster.score(table, step)
    run.begin_update(step)
    return scored


@task(task_run_name="advantage-{step}", tags=["advantage"], retries=1, cache_policy=NO_CACHE)
def advantage(run: Run, table: TableRef, *, step: int) -> TableRef:
    """Turn rewards into advantages and record the step's sample metrics."""
    with run.timed("advantage"):
        finished, metrics = run.cluster.advantages(table, step)
    run.record(metrics)
    run.record_rollout_speed()
    return finished


@task(task_run_name="update-{step}", tags=["update"], cache_policy=NO_CACHE)
def update(run: Run, table: TableRef, *, step: int) -> None:
    """Take the step's optimizer steps under ZeRO-3."""
    with run.timed("update"):
        run.update(table, step)


@task(task_run_name="push-{step}", tags=["push"], cache_policy=NO_CACHE)
def push(run: Run, *, step: int) -> None:
    """Bring the sampler to the trainer's policy, and measure that the two agree."""
    with run.timed("sync"):
        run.record(run.cluster.push(run.policy_version))
