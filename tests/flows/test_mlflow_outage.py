"""A run that MLflow knows goes on while MLflow is away, and a kill while it starts makes no second run there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from drgrpo.comparison.opening import open_comparison
from drgrpo.comparison.plan import plan_arms
from drgrpo.config import TrainConfig
from drgrpo.config.errors import ConfigError
from drgrpo.config.overrides import load_config
from drgrpo.opening import open_run
from drgrpo.report import read_history
from drgrpo.settings import load_settings
from drgrpo.tracking import MlflowAway, deliver_spools
from drgrpo.tracking.store import MlflowStore
from flows.train import train
from tests.flows.fake_cluster import FakeCluster, Script
from tests.flows.test_train import query

pytestmark = pytest.mark.usefixtures("prefect_server")

Options = Callable[..., dict[str, Any]]
AWAY = "http://127.0.0.1:9"


class Killed(BaseException):
    """Stands in for kill -9 at a point in the code."""


def kill(*_: object) -> None:
    raise Killed


def deliver(machine: Path, run_id: str) -> None:
    """By hand, to the store that is there again."""
    spool = machine / ".drgrpo" / "runs" / run_id / "spool"
    assert deliver_spools(f"sqlite:///{machine}/.drgrpo/mlflow.db", spool) == 0
    assert list(spool.glob("*.refused")) == []


def doubled(machine: Path) -> list[tuple[Any, ...]]:
    sql = "select key, step, count(*) from metrics where key not like 'system/%' group by 1, 2 having count(*) > 1"
    return query(machine, sql)


def test_a_run_that_is_started_again_in_an_outage_goes_on_and_has_every_point_once(
    script: Script, options: Options, machine: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = options(total_steps=3, checkpoint__every_steps=2, evaluation__every_steps=1)
    script.failures = {"update-2": 1}
    with pytest.raises(RuntimeError, match="on purpose"):
        train(TrainConfig(), overrides)
    (run_id,) = (path.name for path in (machine / ".drgrpo" / "runs").iterdir())
    with monkeypatch.context() as outage:
        outage.setenv("DRGRPO_MLFLOW_TRACKING_URI", AWAY)
        with pytest.raises(ConfigError, match="MLflow does not answer"):
            train(TrainConfig(), overrides)
        summary = train(TrainConfig(), overrides, run_id)
    assert "MLflow does not answer" in caplog.text and "MLflow is away" in caplog.text
    assert summary["run_id"] == run_id and summary["mlflow_url"].endswith(f"/#/runs/{summary['mlflow_run_id']}")
    assert query(machine, "select status from runs") == [("FAILED",)]
    deliver(machine, run_id)
    assert query(machine, "select status from runs") == [("FINISHED",)]
    steps = query(machine, "select step from metrics where key = 'update/loss' order by step")
    assert steps == [(0,), (1,), (2,)] and doubled(machine) == []


def test_an_engine_lost_in_an_outage_is_started_again(
    script: Script, options: Options, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.failure, script.failures = "is lost", {"update-2": 1}
    update = FakeCluster.update

    def away(_: MlflowStore) -> None:
        raise MlflowException("connection refused")

    with monkeypatch.context() as outage:

        def update_in_an_outage(cluster: FakeCluster, *args: Any) -> dict[str, float]:
            outage.setattr(MlflowStore, "client", property(away))
            return update(cluster, *args)

        outage.setattr(FakeCluster, "update", update_in_an_outage)
        summary = train(TrainConfig(), options(total_steps=3))
    directory = machine / ".drgrpo" / "runs" / summary["run_id"]
    assert script.calls.count("start") == 2
    assert [record["step"] for record in read_history(directory / "history.jsonl")] == [0, 1, 2]
    deliver(machine, summary["run_id"])
    assert query(machine, "select status from runs") == [("FINISHED",)] and doubled(machine) == []


def test_a_kill_before_the_mlflow_run_is_noted_leaves_no_second_run_and_a_new_run_needs_mlflow(
    script: Script, options: Options, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(TrainConfig(), options())

    def open_once() -> None:
        with open_run(config, load_settings(), "run-1", experiment="drgrpo", name="brave", tags={}):
            pass

    with monkeypatch.context() as outage:
        outage.setenv("DRGRPO_MLFLOW_TRACKING_URI", AWAY)
        with pytest.raises(MlflowAway):
            open_once()
    with monkeypatch.context() as killing:
        killing.setattr("drgrpo.opening.write_description", kill)
        with pytest.raises(Killed):
            open_once()
    assert not (machine / ".drgrpo" / "runs" / "run-1" / "run.json").exists()
    open_once()
    assert query(machine, "select status from runs") == [("FINISHED",)]


def test_a_comparison_goes_on_after_a_kill_at_its_start_and_in_an_outage(
    options: Options, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = plan_arms(TrainConfig(), options(), {"plain": {}}, [1], load_settings(), "comparison")

    def open_once() -> str:
        with open_comparison(
            runs, load_settings(), "comparison", experiment="drgrpo-compare", name="brave", tags={}
        ) as comparison:
            return comparison.tracker.run_id

    with monkeypatch.context() as killing:
        killing.setattr("drgrpo.comparison.opening.replace_json", kill)
        with pytest.raises(Killed):
            open_once()
    mlflow_run_id = open_once()
    assert query(machine, "select run_uuid, status from runs") == [(mlflow_run_id, "FINISHED")]
    with monkeypatch.context() as outage:
        outage.setenv("DRGRPO_MLFLOW_TRACKING_URI", AWAY)
        with pytest.raises(ConfigError, match="MLflow does not answer"):
            plan_arms(TrainConfig(), options(), {"plain": {}}, [1], load_settings(), "comparison")
        assert plan_arms(TrainConfig(), options(), {"plain": {}}, [1], load_settings(), "c", is_tracked=True)
        assert open_once() == mlflow_run_id
    deliver(machine, "comparison")
    assert query(machine, "select count(*) from runs") == [(1,)]
