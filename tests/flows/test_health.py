"""Health gates on a real Prefect server: what is shown, and a person's answer to a paused run."""

import contextvars
import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterName,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import SetStateStatus
from prefect.runtime import flow_run

from drgrpo.config.health import HealthConfig
from drgrpo.health import HealthStop, RollBack
from drgrpo.report import read_history
from tasks.health import check_health

pytestmark = pytest.mark.usefixtures("prefect_server")

ENTROPY = [2.0, 1.0, 0.5, 0.01, 0.01, 0.01]


@dataclass
class Records:
    """The part of a run that the gates read and write."""

    directory: Path
    run_id: str = field(default_factory=lambda: str(uuid4()))
    points: list[tuple[dict[str, float], int]] = field(default_factory=list)
    entropy: Sequence[float] = tuple(ENTROPY)
    config: Any = None

    @property
    def tracker(self) -> "Records":
        return self

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.points.append((dict(metrics), step))

    def history(self) -> list[dict[str, float]]:
        return [{"step": step, "update/entropy": value} for step, value in enumerate(self.entropy)]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Records:
    """A run whose entropy collapses at step 3; the gate, of patience 2, becomes true at step 4."""
    monkeypatch.setattr("tasks.health.POLL_INTERVAL_S", 0.2)
    return Records(tmp_path)


def config(action: str, **changes: Any) -> HealthConfig:
    return HealthConfig.model_validate({"entropy": {"action": action, "limit": 0.1, "patience": 2}, **changes})


@flow(name="watched")
def watched(run: Any, config: HealthConfig, steps: Sequence[int]) -> str:
    """Checks the health after each step; returns the id of the flow run."""
    run.config = SimpleNamespace(health=config)
    for step in steps:
        check_health(run, step=step)
    return str(flow_run.id)


def watch(run: Records, config: HealthConfig, steps: Sequence[int] = range(6), **options: Any) -> str:
    result: str = watched.with_options(flow_run_name=run.run_id, validate_parameters=False)(
        run, config, steps, **options
    )
    return result


def flow_runs(client: SyncPrefectClient, run: Records) -> list[FlowRun]:
    return client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[run.run_id])))


def task_runs(run: Records) -> list[str]:
    """Names of the task runs of all flow runs of the run, once they have ended; the server hears of it later."""
    with get_client(sync_client=True) as client:
        ids = [found.id for found in flow_runs(client, run)]
        chosen = FlowRunFilter(id=FlowRunFilterId(any_=ids))
        end = time.monotonic() + 60
        while time.monotonic() < end:
            found = client.read_task_runs(flow_run_filter=chosen)
            # A task run has its name from its last event on.
            if found and all(task_run.state and task_run.state.is_final() for task_run in found):
                break
            time.sleep(0.2)
        return [task_run.name for task_run in found]


def pages(run: Records) -> list[str]:
    with get_client(sync_client=True) as client:
        key = ArtifactFilterKey(any_=[f"health-{run.run_id}"])
        return [str(found.data) for found in client.read_artifacts(artifact_filter=ArtifactFilter(key=key))]


class Person:
    """Answers the run's pauses in turn through Prefect's API, as its UI does, and notes what the forms say.

    `questions` holds for each pause the answers that are tried, of which the last one should be accepted.
    """

    def __init__(self, run: Records, *questions: Sequence[dict[str, Any] | None]) -> None:
        self.run, self.questions = run, questions
        self.descriptions: list[str] = []
        self.schemas: list[dict[str, Any]] = []
        self.replies: list[SetStateStatus] = []
        context = contextvars.copy_context()
        self.thread = threading.Thread(target=context.run, args=(self._answer,), daemon=True)

    def __enter__(self) -> "Person":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.join(timeout=60)
        assert not self.thread.is_alive(), "nobody was asked"

    def _answer(self) -> None:
        with get_client(sync_client=True) as client:
            for answers in self.questions:
                paused = self._paused(client)
                keys = paused.state.state_details.run_input_keyset  # type: ignore[union-attr]
                assert keys is not None
                self.schemas.append(json.loads(self._input(client, paused.id, keys["schema"])))
                self.descriptions.append(json.loads(self._input(client, paused.id, keys["description"])))
                for answer in answers:
                    self.replies.append(client.resume_flow_run(paused.id, run_input=answer).status)

    def _paused(self, client: SyncPrefectClient) -> FlowRun:
        while True:
            for found in flow_runs(client, self.run):
                if found.state and found.state.is_paused():
                    return found
            time.sleep(0.1)

    def _input(self, client: SyncPrefectClient, flow_run_id: UUID, key: str) -> str:
        # The form is written after the state has changed.
        while True:
            reply = client.request(
                "POST", "/flow_runs/{id}/input/filter", path_params={"id": flow_run_id}, json={"prefix": key}
            )
            if found := reply.json():
                return str(found[0]["value"])
            time.sleep(0.1)


def test_a_healthy_step_calls_no_task_and_a_finding_calls_one(run: Records) -> None:
    watch(run, config("warn"), range(4))
    assert (run.points, pages(run)) == ([], [])
    assert not (run.directory / "health.jsonl").exists()
    watch(run, config("warn"), range(4, 6))
    assert task_runs(run) == ["health-4"]
    assert run.points == [({"health/entropy": 1.0}, 4)]
    (page,) = pages(run)
    assert page.startswith("### `entropy` at step 4 (still so)\n\n`update/entropy` lay below 0.1 at 2 steps, 3 to 4; ")
    assert "`optimizer.lr`" in page and "Action: warn." in page
    assert read_history(run.directory / "health.jsonl") == [{"step": 4, "update/entropy": 4}]


def test_a_warning_is_logged_with_its_remedy(run: Records, caplog: pytest.LogCaptureFixture) -> None:
    watch(run, config("warn"))
    (line,) = [r for r in caplog.records if r.levelname == "WARNING" and "Health gate" in r.getMessage()]
    assert line.getMessage().startswith("Health gate entropy: `update/entropy` lay below 0.1 at 2 steps, 3 to 4; ")
    assert "raise `loss.clip_eps_high`" in line.getMessage()


def test_a_warning_that_a_crash_swallowed_is_given_at_the_next_step(run: Records) -> None:
    watch(run, config("warn"), [5])
    assert run.points == [({"health/entropy": 1.0}, 5)]


def test_a_replay_warns_of_nothing_twice_and_a_second_collapse_is_counted(run: Records) -> None:
    run.entropy = [*ENTROPY, 1.0, 0.01, 0.01]
    watch(run, config("warn"), [*range(6), *range(9)])
    assert run.points == [({"health/entropy": 1.0}, 4), ({"health/entropy": 2.0}, 8)]
    assert any(page.count("### ") == 2 and "(over since)" in page for page in pages(run))


def test_a_pause_shows_what_was_seen_and_goes_on_when_a_person_says_so(run: Records) -> None:
    with Person(run, [{"decision": "continue"}]) as person:
        watch(run, config("pause"))
    assert person.replies == [SetStateStatus.ACCEPT]
    assert person.descriptions[0].startswith("### `entropy` at step 4 (still so)")
    assert "below 0.1 at 2 steps, 3 to 4; the last was 0.01." in person.descriptions[0]
    assert person.schemas[0]["properties"]["decision"]["enum"] == ["continue", "stop", "rollback"]
    assert person.schemas[0]["required"] == ["decision"]
    assert run.points == [({"health/entropy": 1.0}, 4)]


def test_who_answered_continue_is_not_asked_again_by_a_replay_but_by_the_next_collapse(run: Records) -> None:
    with Person(run, [{"decision": "continue"}]):
        watch(run, config("pause"))
    watch(run, config("pause"))  # would wait for ever if it asked
    run.entropy = [*ENTROPY, 1.0, 0.01, 0.01]
    with Person(run, [{"decision": "stop"}]) as person, pytest.raises(HealthStop):
        watch(run, config("pause"), range(6, 9))
    assert "at step 8" in person.descriptions[0]


def test_two_pauses_of_one_flow_run_are_two_questions(run: Records) -> None:
    run.entropy = [*ENTROPY, 1.0, 0.01, 0.01]
    with Person(run, [{"decision": "continue"}], [{"decision": "continue"}]) as person:
        watch(run, config("pause"), range(9))
    assert person.replies == [SetStateStatus.ACCEPT] * 2
    assert "at step 4" in person.descriptions[0] and "at step 8" in person.descriptions[1]


def test_a_person_can_stop_a_paused_run_and_a_replay_asks_again(run: Records) -> None:
    for _ in range(2):
        with Person(run, [{"decision": "stop"}]), pytest.raises(HealthStop, match=r"\(decided by a person\)"):
            watch(run, config("pause"))
    assert not (run.directory / "health.jsonl").exists()


def test_a_person_can_roll_a_paused_run_back(run: Records) -> None:
    with Person(run, [{"decision": "rollback"}]), pytest.raises(RollBack) as rolled:
        watch(run, config("pause"))
    assert (rolled.value.finding.step, rolled.value.finding.last_good) == (4, 2)


def test_the_server_refuses_answers_that_the_form_does_not_have(run: Records) -> None:
    wrong: list[dict[str, Any] | None] = [None, {}, {"decision": "dance"}, {"decision": "stop", "lr": 1}]
    with Person(run, [*wrong, {"decision": "continue"}]) as person:
        watch(run, config("pause"))
    assert person.replies == [SetStateStatus.REJECT] * 4 + [SetStateStatus.ACCEPT]


def test_a_pause_that_nobody_answers_stops_the_run(run: Records) -> None:
    with pytest.raises(HealthStop, match="nobody decided within 1 s"):
        watch(run, config("pause", pause_timeout_s=1))
    with get_client(sync_client=True) as client:
        (found,) = flow_runs(client, run)
        assert found.state is not None and found.state.is_failed()
        reply = client.resume_flow_run(found.id, run_input={"decision": "continue"})
    assert reply.status == SetStateStatus.ABORT


def test_stop_and_rollback_raise_as_long_as_the_gate_is_true(run: Records) -> None:
    for step in (4, 5):
        with pytest.raises(HealthStop) as stopped:
            watch(run, config("stop"), [step])
        with pytest.raises(RollBack) as rolled:
            watch(run, config("rollback"), [step])
        assert stopped.value.finding.step == rolled.value.finding.step == 4
    run.entropy = [*ENTROPY, 1.0]
    watch(run, config("stop"), [6])


def test_a_run_out_of_rollbacks_stops(run: Records) -> None:
    run.run_id = f"{run.run_id}-rollback-2"
    with pytest.raises(HealthStop, match=r"health.max_rollbacks = 2 is used up"):
        watch(run, config("rollback"))
    with pytest.raises(HealthStop):
        watch(run, config("rollback", max_rollbacks=0))


def test_the_strictest_action_wins_and_every_finding_is_shown(run: Records) -> None:
    always = {"action": "stop", "limit": 10.0, "patience": 4}  # true at step 3: entropy is watched by one gate only
    with pytest.raises(HealthStop):
        watch(run, HealthConfig.model_validate({"entropy": always}), [3])
    history = [{**record, "rollout/truncated_share": 1.0} for record in run.history()]
    run.history = lambda: history  # type: ignore[method-assign]
    gates = {"truncated_share": {"action": "rollback", "patience": 5}}
    with pytest.raises(RollBack) as rolled:
        watch(run, config("pause", **gates), [4])
    assert rolled.value.finding.gate == "truncated_share"
    with pytest.raises(HealthStop) as stopped:
        watch(run, config("stop", **gates), [4])
    assert stopped.value.finding.gate == "entropy"
    assert run.points[-1] == ({"health/entropy": 1.0, "health/truncated_share": 1.0}, 4)
