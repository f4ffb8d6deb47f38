"""A generation that begins before its step: used once, by that step and policy alone."""

from types import SimpleNamespace
from typing import Any

import pytest

from drgrpo.cluster import cluster as module
from drgrpo.cluster.cluster import Cluster
from drgrpo.run import Run


class Host:
    """Answers with what it was asked."""

    def start(self, method: str, *args: Any) -> tuple[Any, ...]:
        return (method, *args)

    def call(self, method: str, step: int, policy_version: int, *parts: Any) -> tuple[Any, ...]:
        return (method, step, policy_version, *parts)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(module, "results", lambda parts: parts)
    made: Any = Cluster.__new__(Cluster)
    made._begun, made.generations = None, []

    def start(method: str, *args: Any, **options: Any) -> str | float:
        return generate(*args, **options) if method == "generate" else 1.5

    def generate(requests: Any, sampling: Any, *, policy_version: int, part: int, num_parts: int) -> str:
        made.generations.append((requests[1], policy_version))
        return f"{requests[0]} {requests[1]} of {policy_version}"

    engine = SimpleNamespace(start=start)
    made.engines = SimpleNamespace(host=Host(), rollout=[engine])
    found: Cluster = made
    return found


def test_what_has_begun_is_not_generated_again_and_used_once(cluster: Any) -> None:
    cluster.begin_rollout(3, 3)
    table, metrics = cluster.rollout(3, 3)
    assert table == ("write_rollout", 3, 3, "requests 3 of 3") and metrics == {"engine_seconds/generate": 1.5}
    assert cluster.generations == [(3, 3)]
    cluster.rollout(3, 3)  # Prefect tries again
    assert cluster.generations == [(3, 3), (3, 3)]


@pytest.mark.parametrize(("step", "policy_version"), [(4, 3), (3, 4)])
def test_another_step_or_policy_is_generated_for_itself(cluster: Any, step: int, policy_version: int) -> None:
    cluster.begin_rollout(3, 3)
    table, _ = cluster.rollout(step, policy_version)
    assert table == ("write_rollout", step, policy_version, f"requests {step} of {policy_version}")
    assert cluster.generations == [(3, 3), (step, policy_version)]


@pytest.mark.parametrize(
    ("step", "evaluates", "stored", "begins"),
    [
        (5, False, None, True),
        (9, False, None, True),
        (10, False, None, False),
        (5, True, None, False),
        (5, False, "a table", False),
    ],
)
def test_a_step_begins_early_unless_it_is_past_the_end_or_evaluated_before_or_on_disk(
    step: int, evaluates: bool, stored: str | None, begins: bool
) -> None:
    begun: list[tuple[int, int]] = []
    run: Any = SimpleNamespace(
        config=SimpleNamespace(total_steps=10),
        policy_version=step,
        cluster=SimpleNamespace(begin_rollout=lambda *args: begun.append(args)),
        is_evaluation_due=lambda _: evaluates,
        table=lambda *_: stored,
    )
    Run.begin_rollout(run, step)
    assert begun == ([(step, step)] if begins else [])
