"""The clock goes back: by an hour at every look, for a whole run on the fake engines."""

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drgrpo.report import read_history
from drgrpo.tracking import Tracker
from tests.flows.fake_cluster import Script
from tests.flows.test_train import call, query

pytestmark = pytest.mark.usefixtures("prefect_server")

Options = Callable[..., dict[str, Any]]


def test_a_run_under_a_clock_that_goes_back_has_every_point_once_and_no_negative_time(
    options: Options, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, looks = time.time(), itertools.count()
    monkeypatch.setattr("drgrpo.opening.Cluster", Script().start)
    # Only our own look at the clock: Prefect's and MLflow's are theirs.
    monkeypatch.setattr("drgrpo.tracking.tracker._now_ms", lambda: int((now - 3600 * next(looks)) * 1000))
    monkeypatch.setattr("drgrpo.tracking.tracker.time.time_ns", lambda: int(now * 1e9))
    summary = call(options(total_steps=3, evaluation__every_steps=1))
    directory = machine / ".drgrpo" / "runs" / summary["run_id"]
    history = read_history(directory / "history.jsonl")
    assert [record["step"] for record in history] == [0, 1, 2]
    assert all(value >= 0 for record in history for key, value in record.items() if key.startswith("seconds/"))
    points = Counter(query(machine, "select key, step from metrics where key not like 'system/%'"))
    assert set(points.values()) == {1}
    assert {step for key, step in points if key == "reward/mean"} == {0, 1, 2}
    assert next(looks) > 5


def test_two_tables_staged_at_the_same_instant_are_both_delivered(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drgrpo.tracking.tracker.time.time_ns", lambda: 1_700_000_000_000_000_000)
    tracker = Tracker.start(
        f"sqlite:///{empty_store}", "clock", "run", own_id="run-1", params={}, tags={}, spool_dir=tmp_path / "spool",
        artifact_location=(tmp_path / "artifacts").as_uri(), system_metrics=False,
    )  # fmt: skip
    tracker.log_table([{"n": 1}], "a.json")
    tracker.log_table([{"n": 2}], "a/b.json")
    assert tracker.finish() == 0
    written = {path.name: json.loads(path.read_text())["data"] for path in (tmp_path / "artifacts").rglob("*.json")}
    assert written == {"a.json": [[1]], "b.json": [[2]]}
