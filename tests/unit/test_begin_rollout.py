"""What the engines begin with before the flow comes to it: used once, by that step and policy alone."""

from types import SimpleNamespace
from typing import Any

import pytest

from drgrpo.cluster import cluster as module
from drgrpo.cluster.ahead import Ahead
from drgrpo.cluster.cluster import Cluster
from drgrpo.run import Run


class Host:
    """Answers with what it was asked, and remembers it."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def start(self, method: str, *args: Any) -> tuple[Any, ...]:
        self.asked.append((method, *args))
        return (method, *args)

    def start_pair(self, method: str, *args: Any) -> list[Any]:
        return [self.start(method, *args), f"{method}' metrics"]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(module, "results", lambda parts: made.results(parts))
    made: Any = Cluster.__new__(Cluster)
    made._ahead, made.generations, made.results = Ahead(), [], list

    def start(method: str, *args: Any, **options: Any) -> str | float:
        return generate(*args, **options) if method == "generate" else 1.5

    def generate(requests: Any, sampling: Any, *, policy_version: int, part: int, num_parts: int) -> str:
        made.generations.append((requests[1], policy_version))
        return f"{requests[0]} {requests[1]} of {policy_version}"

    engine = SimpleNamespace(start=start)
    made.config = SimpleNamespace(placement=SimpleNamespace(sleep=False))
    made.engines = SimpleNamespace(host=Host(), rollout=[engine], ranks=[Host(), Host()])
    found: Cluster = made
    return found


def test_what_has_begun_is_not_generated_again_and_used_once(cluster: Any) -> None:
    cluster.begin_rollout(3, 3)
    table, metrics = cluster.rollout(3, 3)
    assert table == ("write_rollout", 3, 3, "requests 3 of 3") and metrics == {"engine_seconds/generate": 1.5}
    assert cluster.generations == [(3, 3)]
    cluster.rollout(3, 3)  # Prefect tries again
    assert cluster.generations == [(3, 3), (3, 3)]


def test_grading_and_advantages_follow_without_the_flow_and_once(cluster: Any) -> None:
    cluster.begin_rollout(3, 3)
    table = ("write_rollout", 3, 3, "requests 3 of 3")
    scored, finished = ("score", table, 3), ("advantages", ("score", table, 3), 3)
    assert cluster.engines.host.asked[2:] == [table, scored, finished]
    assert [cluster.has_begun(stage, 3) for stage in ("rollout", "reward", "advantage")] == [True] * 3
    cluster.rollout(3, 3)
    assert cluster.score("a table", 3) == scored
    assert cluster.advantages("a table", 3) == (finished, "advantages' metrics")
    assert not any(cluster.has_begun(stage, 3) for stage in ("rollout", "reward", "advantage"))
    assert cluster.score("another", 3) == ("score", "another", 3)  # Prefect tries again
    assert len(cluster.engines.host.asked) == 6


def test_after_a_failure_what_followed_from_it_is_asked_for_anew(cluster: Any) -> None:
    def fail(_: Any) -> Any:
        raise RuntimeError("the graders failed")

    cluster.begin_rollout(3, 3)
    cluster.rollout(3, 3)
    cluster.results = fail
    with pytest.raises(RuntimeError, match="the graders failed"):
        cluster.score("a table", 3)
    cluster.results = list
    assert cluster.score("a table", 3) == ("score", "a table", 3)
    assert cluster.advantages("scored", 3)[0] == ("advantages", "scored", 3)


def test_update_and_push_follow_the_advantages_without_the_flow_and_once(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "logprob_differences", lambda *_: {})
    cluster._probes = []
    cluster.begin_rollout(3, 3)
    table, _ = cluster._ahead.see("advantage")
    cluster.begin_update(3)
    updated, pushed = ("update", table, 3), ("push", 4, ("update", table, 3))
    # Each rank pushes only when its own update has ended well.
    assert [rank.asked for rank in cluster.engines.ranks] == [[updated, pushed]] * 2
    assert cluster.update("a table", 3) == updated
    assert cluster._ahead.has("push", 3) and not cluster._ahead.has("update", 3)
    cluster.results = lambda parts: [{"of": part} for part in parts]
    assert cluster.push(4) == {"of": pushed}
    assert cluster.update("another", 3) == {"of": ("update", "another", 3)}  # it is asked for anew
    assert cluster.push(4) == {"of": ("push", 4)}


def test_what_has_begun_is_of_its_step_alone(cluster: Any) -> None:
    cluster.begin_rollout(3, 3)
    assert not cluster.has_begun("reward", 4)
    assert cluster.score("a table", 4) == ("score", "a table", 4)


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


@pytest.mark.parametrize(
    ("begun", "sleeps"),
    [({"advantage"}, False), ({"advantage"}, True), (set(), False), ({"advantage", "update"}, False)],
)
def test_the_trainer_follows_what_has_begun_unless_samplers_sleep_and_the_state_is_not_whole_then(
    begun: set[str], sleeps: bool
) -> None:
    held: list[str] = []
    run: Any = SimpleNamespace(
        config=SimpleNamespace(placement=SimpleNamespace(sleep=sleeps)),
        cluster=SimpleNamespace(
            has_begun=lambda stage, _: stage in begun, begin_update=lambda step: held.append(f"update {step}")
        ),
        notice=SimpleNamespace(hold=lambda: held.append("held")),
        _is_whole=True,
    )
    Run.begin_update(run, 5)
    follows = begun == {"advantage"} and not sleeps
    assert held == (["held", "update 5"] if follows else []) and run._is_whole is not follows
