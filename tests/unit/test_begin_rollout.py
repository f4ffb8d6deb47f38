"""What the engines begin with before the flow comes to it: used once, by that step and policy alone."""

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from drgrpo.cluster import cluster as module
from drgrpo.cluster.ahead import Ahead
from drgrpo.cluster.cluster import Cluster
from drgrpo.run import Run
from tasks.stages import reward, rollout


class Host:
    """Answers with what it was asked, and remembers it."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def start(self, method: str, *args: Any, after: Any = None) -> tuple[Any, ...]:
        call = (method, *args) if after is None else (method, *args, after)
        self.asked.append(call)
        return call

    def start_pair(self, method: str, *args: Any) -> list[Any]:
        return [self.start(method, *args), f"{method}' metrics"]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(module, "results", lambda parts: made.results(parts))
    made: Any = Cluster.__new__(Cluster)
    made._ahead, made.generations, made.results, made.after = Ahead(), [], list, []

    def start(method: str, *args: Any, after: Any = None, **options: Any) -> str | float:
        made.after.append((method, after))
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
    graded = ("grade", table)
    samples, scored = ("samples", table, graded), ("score", table, graded, 3)
    finished = ("advantages", scored, samples, 3)
    # The trainer's samples come before what is written of them.
    assert cluster.engines.host.asked[2:] == [table, graded, samples, scored, finished]
    assert [cluster.has_begun(stage, 3) for stage in ("rollout", "reward", "advantage")] == [True] * 3
    cluster.rollout(3, 3)
    assert cluster.score("a table", 3) == scored
    assert cluster.advantages("a table", 3) == (finished, "advantages' metrics")
    assert not any(cluster.has_begun(stage, 3) for stage in ("rollout", "reward", "advantage"))
    assert cluster.score("another", 3) == ("score", "another", ("grade", "another"), 3)  # Prefect tries again
    assert len(cluster.engines.host.asked) == 9


def test_after_a_failure_what_followed_from_it_is_asked_for_anew(cluster: Any) -> None:
    def fail(_: Any) -> Any:
        raise RuntimeError("the graders failed")

    cluster.begin_rollout(3, 3)
    cluster.rollout(3, 3)
    cluster.results = fail
    with pytest.raises(RuntimeError, match="the graders failed"):
        cluster.score("a table", 3)
    cluster.results = list
    assert cluster.score("a table", 3) == ("score", "a table", ("grade", "a table"), 3)
    assert cluster.advantages("scored", 3)[0] == ("advantages", "scored", ("samples", "scored"), 3)


def test_where_a_table_cannot_be_written_it_is_of_the_same_rewards_the_next_time_and_the_update_goes_on(
    cluster: Any,
) -> None:
    def fail(_: Any) -> Any:
        raise RuntimeError("no space left on device")

    cluster._probes = []
    cluster.begin_rollout(3, 3)
    graded, samples = cluster._ahead.see("graded", 3), cluster._ahead.see("samples", 3)
    cluster.begin_update(3)
    cluster.results = fail
    with pytest.raises(RuntimeError, match="no space left"):
        cluster.score("a table", 3)
    assert not cluster.has_begun("advantage", 3)  # it was to be made of that table
    with pytest.raises(RuntimeError, match="no space left"):
        cluster.advantages("a table", 3)
    cluster.results = list
    assert cluster.score("a table", 3) == ("score", "a table", graded, 3)
    assert cluster.advantages("scored", 3)[0] == ("advantages", "scored", samples, 3)
    assert cluster.update("a table", 3) == ("update", samples, 3)
    assert [rank.asked[0] for rank in cluster.engines.ranks] == [("update", samples, 3)] * 2  # once


def test_update_push_and_comparison_follow_the_advantages_without_the_flow_and_once(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[Any] = []
    monkeypatch.setattr(module, "logprob_differences", lambda *scores: compared.append(scores) or {})
    cluster._probes = ["probes"]
    cluster.begin_rollout(3, 3)
    samples = cluster._ahead.see("samples", 3)
    cluster.begin_update(3)
    updated, pushed = ("update", samples, 3), ("push", 4, ("update", samples, 3))
    scored = ("score", ["probes"], pushed)
    # Each rank pushes only when its own update has ended well, and it and its sampler score only after the push.
    assert [rank.asked for rank in cluster.engines.ranks] == [[updated, pushed, scored]] * 2
    assert cluster.after[-1] == ("score", pushed)
    assert cluster.update("a table", 3) == updated
    assert cluster._ahead.has("push", 3) and not cluster._ahead.has("update", 3)
    cluster.results = lambda parts: [{"of": part} for part in parts]
    assert cluster.push(4) == {"of": pushed}
    assert compared == [({"of": scored}, [{"of": 1.5}])]
    assert cluster.update("another", 3) == {"of": ("update", "another", 3)}  # it is asked for anew
    assert cluster.push(4) == {"of": ("push", 4)}
    assert cluster.after[-1] == ("score", None) and len(compared) == 2


def test_the_next_rollout_begins_after_the_push_that_was_asked_for_and_this_step_goes_on(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "logprob_differences", lambda *_: {})
    cluster._probes = []
    cluster.begin_rollout(3, 3)
    samples = cluster._ahead.see("samples", 3)
    cluster.begin_update(3)
    cluster.begin_rollout(4, 4)
    pushed = ("push", 4, ("update", samples, 3))
    assert [entry for entry in cluster.after if entry[0] == "generate"] == [("generate", None), ("generate", pushed)]
    assert cluster.update("a table", 3) == ("update", samples, 3)
    assert cluster._ahead.take("push", 3) == [pushed] * 2
    # The table of what policy 4 was made from is there before one of its completions.
    finished = cluster._ahead.see("advantage", 3)[0]
    assert cluster.rollout(4, 4)[0] == ("write_rollout", 4, 4, "requests 4 of 4", finished)
    assert cluster.generations == [(3, 3), (4, 4)]
    cluster.begin_rollout(5, 5)
    assert not cluster._ahead.has("reward", 3) and cluster._ahead.has("reward", 4)


def test_an_update_of_a_step_that_has_not_begun_is_not_asked_for(cluster: Any) -> None:
    with pytest.raises(KeyError):
        cluster.begin_update(3)
    assert [rank.asked for rank in cluster.engines.ranks] == [[], []]


def test_after_a_failed_update_neither_push_nor_rollout_of_it_is_used(cluster: Any) -> None:
    cluster._probes = []
    cluster.begin_rollout(3, 3)
    cluster.begin_update(3)
    cluster.begin_rollout(4, 4)

    def fail(_: Any) -> Any:
        raise RuntimeError("not finite")

    cluster.results = fail
    with pytest.raises(RuntimeError, match="not finite"):
        cluster.update("a table", 3)
    assert not any(cluster.has_begun(stage, step) for stage in ("rollout", "push", "update") for step in (3, 4))


def test_what_has_begun_is_of_its_step_alone(cluster: Any) -> None:
    cluster.begin_rollout(3, 3)
    assert not cluster.has_begun("reward", 4)
    assert cluster.score("a table", 4) == ("score", "a table", ("grade", "a table"), 4)


@pytest.mark.parametrize(("step", "policy_version"), [(4, 3), (3, 4)])
def test_another_step_or_policy_is_generated_for_itself(cluster: Any, step: int, policy_version: int) -> None:
    cluster.begin_rollout(3, 3)
    table, _ = cluster.rollout(step, policy_version)
    assert table[:4] == ("write_rollout", step, policy_version, f"requests {step} of {policy_version}")
    assert cluster.generations == [(3, 3), (step, policy_version)]


@pytest.mark.parametrize(
    ("step", "evaluates", "stored", "begun", "begins"),
    [
        (5, False, None, False, True),
        (9, False, None, False, True),
        (10, False, None, False, False),
        (5, True, None, False, False),
        (5, False, "a table", False, False),
        (5, False, None, True, False),
    ],
)
def test_a_step_begins_early_unless_it_has_or_is_past_the_end_or_evaluated_before_or_on_disk(
    step: int, evaluates: bool, stored: str | None, begun: bool, begins: bool
) -> None:
    asked: list[tuple[int, int]] = []
    run: Any = Run.__new__(Run)
    run.config, run.policy_version = SimpleNamespace(total_steps=10), step
    run.cluster = SimpleNamespace(begin_rollout=lambda *args: asked.append(args), has_begun=lambda *_: begun)
    run.is_evaluation_due, run.table = lambda _: evaluates, lambda *_: stored
    run.begin_rollout(step)
    assert asked == ([(step, step)] if begins else [])


@pytest.mark.parametrize("evaluates", [False, True])
@pytest.mark.parametrize(
    ("begun", "sleeps"),
    [({"advantage"}, False), ({"advantage"}, True), (set(), False), ({"advantage", "update"}, False)],
)
def test_trainer_and_next_rollout_follow_what_has_begun_unless_samplers_sleep_and_the_state_is_not_whole_then(
    begun: set[str], sleeps: bool, evaluates: bool
) -> None:
    held: list[str] = []
    run: Any = Run.__new__(Run)
    run.config = SimpleNamespace(placement=SimpleNamespace(sleep=sleeps), total_steps=10)
    run.cluster = SimpleNamespace(
        has_begun=lambda stage, _: stage in begun,
        begin_update=lambda step: held.append(f"update {step}"),
        begin_rollout=lambda step, version: held.append(f"rollout {step} of {version}"),
    )
    run.notice = SimpleNamespace(hold=lambda: held.append("held"))
    run.is_evaluation_due, run.table, run.policy_version, run._is_whole = lambda _: evaluates, lambda *_: None, 5, True
    run.begin_update(5)
    follows = begun == {"advantage"} and not sleeps
    expected = ["held", "update 5"] + ([] if evaluates else ["rollout 6 of 6"])
    assert held == (expected if follows else []) and run._is_whole is not follows


@pytest.mark.parametrize("is_graded", [True, False])
def test_the_update_is_asked_for_with_the_rollout_where_grading_ends_soon(is_graded: bool) -> None:
    asked: list[str] = []
    run: Any = MagicMock()
    run.cluster.has_begun.return_value, run.cluster.has_graded.return_value = True, is_graded
    run.cluster.rollout.side_effect = lambda step, _: asked.append(f"rollout {step}") or ("a table", {"seconds": 1.0})
    run.begin_update.side_effect = lambda step: asked.append(f"update {step}")
    assert rollout.fn(run, step=3) == "a table"
    assert asked == ["rollout 3", *(["update 3"] if is_graded else [])]
    run.cluster.score.return_value = "a graded table"
    assert reward.fn(run, "a table", step=3) == "a graded table" and asked[-1] == "update 3"


def test_rewards_on_disk_are_not_taken_beside_an_update_that_may_be_of_others() -> None:
    run: Any = MagicMock()
    run.table.return_value, run.cluster.score.return_value = "on disk", "of the update"
    run.cluster.has_begun.side_effect = lambda stage, _: stage == "update"
    assert reward.fn(run, "a table", step=3) == "of the update"
    run.cluster.has_begun.side_effect = lambda *_: False
    assert reward.fn(run, "a table", step=3) == "on disk"


def test_a_rollout_from_the_disk_begins_no_update() -> None:
    run: Any = MagicMock()
    run.cluster.has_begun.return_value, run.table.return_value = False, "from the disk"
    assert rollout.fn(run, step=4) == "from the disk"
    run.begin_update.assert_not_called()


class Reference:
    """To a task that ended with a value or an error, or runs still."""

    def __init__(self, outcome: Any = None) -> None:
        self._future: Future[Any] = Future()
        if isinstance(outcome, Exception):
            self._future.set_exception(outcome)
        elif outcome is not None:
            self._future.set_result(outcome)

    def future(self) -> Future[Any]:
        return self._future


@pytest.mark.parametrize(
    ("graded", "expected"),
    [(Reference("a table"), True), (Reference(RuntimeError("too many failed")), False), (Reference(), False)],
)
def test_a_step_is_graded_when_its_grading_has_ended_well(cluster: Any, graded: Reference, expected: bool) -> None:
    assert not cluster.has_graded(3, within_s=0)
    cluster._ahead.begin(3, 3, reward="a reference", samples=graded)
    assert cluster.has_graded(3, within_s=0) is expected
    assert cluster.has_begun("reward", 3)  # it is waited for as before
