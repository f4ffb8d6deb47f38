"""What a run remembers: cadence, metrics of a step, and whose directory it is."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from drgrpo.config import TrainConfig
from drgrpo.config.overrides import load_config
from drgrpo.description import Description
from drgrpo.notice import Notice
from drgrpo.report import read_history, write_history
from drgrpo.run import Run
from drgrpo.settings import Settings, resolved
from drgrpo.tables import write_table
from tests.growing_table import add_columns


class Logged:
    """A tracker that remembers what it is given."""

    def __init__(self) -> None:
        self.points: list[tuple[dict[str, float], int]] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.points.append((dict(metrics), step))


def make_run(root: Path, **changes: Any) -> tuple[Run, Logged]:
    config = load_config({}, {name.replace("__", "."): value for name, value in changes.items()})
    description = Description(config, "")
    settings, logged = resolved(Settings(root=root)), Logged()
    run = Run(description, settings, "run-1", "able-otter", logged, SimpleNamespace(), Notice(0))  # type: ignore[arg-type]
    run.directory.mkdir(parents=True, exist_ok=True)
    return run, logged


@pytest.mark.parametrize(
    ("every", "due"), [(0, [0, 7]), (1, [0, 1, 2, 3, 4, 5, 6, 7]), (3, [0, 3, 6, 7]), (7, [0, 7]), (100, [0, 7])]
)
def test_evaluation_is_due_at_the_start_at_its_cadence_and_at_the_end(
    tmp_path: Path, every: int, due: list[int]
) -> None:
    run, _ = make_run(tmp_path, total_steps=7, evaluation__every_steps=every)
    assert [done for done in range(8) if run.is_evaluation_due(done)] == due


@pytest.mark.parametrize(("every", "due"), [(0, []), (1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (5, [5])])
def test_a_checkpoint_is_due_at_its_cadence_and_at_the_end_or_never(tmp_path: Path, every: int, due: list[int]) -> None:
    run, _ = make_run(tmp_path, total_steps=5, checkpoint__every_steps=every)
    assert [done for done in range(1, 6) if run.savepoints.is_due(done)] == due


def evaluate(run: Run, num_done: int, value: float) -> bool:
    """Note an evaluation; returns whether its policy is saved."""
    run.savepoints.add_evaluation(num_done, {"evaluation/avg_at_k": value})
    return run.savepoints.is_due(num_done)


def test_an_evaluation_that_is_the_best_so_far_is_saved(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path, total_steps=9, checkpoint__every_steps=4)
    evaluate(run, 0, 0.5)
    values = {1: 0.4, 2: 0.6, 3: 0.6, 4: 0.1, 5: 0.7, 6: float("nan"), 7: 0.65}
    assert [done for done, value in values.items() if evaluate(run, done, value)] == [2, 4, 5]
    assert not run.savepoints.is_due(10)


def test_without_a_cadence_the_best_is_not_saved_either(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path, total_steps=9, checkpoint__every_steps=0, checkpoint__every_minutes=0)
    evaluate(run, 0, 0.5)
    assert not evaluate(run, 2, 0.9)


def test_by_minutes_alone_the_best_is_saved_too(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path, total_steps=9)
    evaluate(run, 0, 0.5)
    assert [evaluate(run, 2, 0.9), evaluate(run, 3, 0.9)] == [True, False]


def test_a_continued_run_knows_the_best_of_before_and_not_of_what_it_replays(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path, total_steps=9)
    for done, value in ((0, 0.1), (4, 0.8), (6, 0.9)):
        write_history(run.directory / "evaluations.jsonl", {"step": done, "evaluation/avg_at_k": value})
    again, _ = make_run(tmp_path, total_steps=9)
    assert [evaluate(again, 5, 0.7), evaluate(again, 6, 0.9)] == [False, True]


def test_a_checkpoint_names_the_tables_by_their_manifests_without_reading_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = make_run(tmp_path)
    refs = [write_table(run.directory / "steps" / f"{s:06d}" / "advantage.parquet", {"a": [s]}) for s in (0, 2, 3)]
    saved: list[dict[str, Any]] = []
    monkeypatch.setattr(run.savepoints, "save", lambda state: saved.append(state) or {})
    monkeypatch.setattr("drgrpo.tables._digest", None)
    run.save_checkpoint(3)
    assert saved[0]["tables"] == {"0": refs[0].sha256, "2": refs[1].sha256}


def test_a_step_is_committed_with_what_was_recorded_since_it_began(tmp_path: Path) -> None:
    run, logged = make_run(tmp_path)
    run.record({"before": 1.0})
    run.begin_step()
    with run.timed("rollout"):
        time.sleep(0.02)
    run.record({"rollout/completion_tokens": 50.0, "engine_seconds/generate": 0.25})
    run.record_rollout_speed()
    run.policy_version = 4
    metrics = run.commit(3)
    assert set(metrics) == {
        *("rollout/completion_tokens", "engine_seconds/generate", "rollout/tokens_per_s"),
        *("seconds/rollout", "seconds/step", "policy_version"),
    }
    assert metrics["rollout/tokens_per_s"] == 200.0 and metrics["policy_version"] == 4
    assert 0.02 <= metrics["seconds/rollout"] <= metrics["seconds/step"]
    assert logged.points == [(metrics, 3)]
    assert read_history(run.directory / "history.jsonl") == [{"step": 3, **metrics}]


def test_the_seconds_of_a_step_leave_evaluation_out(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path)
    run.begin_step()
    with run.timed("evaluate"):
        time.sleep(0.05)
    metrics = run.commit(0)
    assert metrics["seconds/evaluate"] >= 0.05 > metrics["seconds/step"]


def test_a_rollout_from_disk_has_no_speed(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path)
    run.begin_step()
    run.record({"rollout/completion_tokens": 50.0})
    run.record_rollout_speed()
    assert "rollout/tokens_per_s" not in run.commit(0)


def test_a_failing_stage_records_no_seconds(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path)
    run.begin_step()
    with pytest.raises(RuntimeError), run.timed("rollout"):
        raise RuntimeError
    assert "seconds/rollout" not in run.commit(0)


def test_tables_are_found_by_step_and_stage(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path)
    assert run.table(12, "reward") is None and run.evaluation_table(4) is None
    rollout = write_table(run.directory / "steps" / "000012" / "rollout.parquet", {"b": [1]})
    reward = add_columns(rollout, run.directory / "steps" / "000012" / "reward.parquet", {"a": [1]})
    evaluation = write_table(run.directory / "evaluations" / "000004.parquet", {"a": [1]})
    assert run.table(12, "reward") == reward and run.evaluation_table(4) == evaluation
    assert run.table(12, "reward", source=rollout) == reward and run.table(12, "reward", source=evaluation) is None
    assert run.table(12, "advantage") is None


def test_an_evaluation_counts_the_samples_that_were_asked_for_and_are_not_there(tmp_path: Path) -> None:
    run, logged = make_run(tmp_path, evaluation__samples_per_problem=2)
    run.cluster.data = {"evaluation": {"num_problems": 3}}
    columns = {
        "problem_id": ["p", "q", "p", "p", "q"],  # r is lost whole, and a sample of q
        "mode": ["greedy"] * 2 + ["sampled"] * 3,
        "correct": [True, False, True, False, True],
        "completion_ids": [[1]] * 5,
        "finish_reason": ["stop"] * 5,
    }
    metrics = run.add_evaluation(0, write_table(run.directory / "evaluations" / "000000.parquet", columns))
    assert metrics["evaluation/lost_samples"] == 4.0  # of 3 greedy ones and 6 sampled ones
    assert (metrics["evaluation/greedy"], metrics["evaluation/avg_at_k"]) == (0.5, 0.75)
    assert logged.points == [(metrics, 0)]


def test_a_configuration_survives_the_runs_description(tmp_path: Path) -> None:
    config = load_config({}, {"optimizer.lr": 3e-7, "reward.functions": {"a.b": 0.5}, "rollout.stop": ["x"]})
    assert TrainConfig.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config
