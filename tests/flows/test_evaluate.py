"""The evaluation flow: real Prefect server and MLflow store, a cluster without engines."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from drgrpo.config import TrainConfig
from drgrpo.config.errors import ConfigError
from drgrpo.tables import find_table, read_table
from drgrpo.tracking import TrackingError
from flows.evaluate import evaluate
from flows.train import train
from tests.flows.fake_cluster import NUM_PROBLEMS, Script

pytestmark = pytest.mark.usefixtures("prefect_server")

Options = Callable[..., dict[str, Any]]


def query(machine: Path, sql: str) -> list[tuple[Any, ...]]:
    """Rows of the MLflow store."""
    with sqlite3.connect(machine / ".drgrpo" / "mlflow.db") as connection:
        return connection.execute(sql).fetchall()


def test_an_evaluation_starts_no_trainer_and_is_tracked(script: Script, options: Options, machine: Path) -> None:
    metrics = evaluate(TrainConfig(), options())
    assert script.calls == ["start", "evaluate-0", "close"]
    assert not script.clusters[0].is_training
    assert metrics["evaluation/num_problems"] == NUM_PROBLEMS
    logged = query(machine, "select key, value, step from metrics where key like 'evaluation/%'")
    assert {key: value for key, value, _ in logged} == metrics
    assert {step for _, _, step in logged} == {0}
    assert query(machine, "select status from runs") == [("FINISHED",)]
    assert query(machine, "select name from experiments where name like 'drgrpo%'") == [("drgrpo-evaluate",)]


def test_its_samples_are_shown_and_kept(script: Script, options: Options, machine: Path) -> None:
    evaluate(TrainConfig(), options(evaluation__num_shown=3))
    (run_dir,) = (machine / ".drgrpo" / "runs").iterdir()
    table = find_table(run_dir / "evaluations" / "000000.parquet")
    assert table is not None and read_table(table).num_rows == NUM_PROBLEMS * 5
    with get_client(sync_client=True) as client:
        key = ArtifactFilterKey(any_=[f"samples-{run_dir.name}"])
        (artifact,) = client.read_artifacts(artifact_filter=ArtifactFilter(key=key))
    assert str(artifact.data).count('"completion"') == 3


def test_a_failing_evaluation_is_tried_again_once_and_closes_the_engines(
    script: Script, options: Options, machine: Path
) -> None:
    script.failures = {"evaluate-0": 2}
    with pytest.raises(RuntimeError, match="on purpose"):
        evaluate(TrainConfig(), options())
    assert script.calls == ["start", "evaluate-0", "evaluate-0", "close"]
    assert query(machine, "select status from runs") == [("FAILED",)]


def test_bad_input_starts_no_engine(script: Script, options: Options, machine: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        evaluate(TrainConfig(), options(evaluation__num_problem=3, model__path="/no/model"))
    assert {mistake.field for mistake in caught.value.mistakes} == {"evaluation.num_problem", "model.path"}
    assert script.calls == [] and not (machine / ".drgrpo" / "runs").exists()


def test_an_unknown_run_is_named(script: Script, options: Options, machine: Path) -> None:
    unknown = "0" * 32
    with pytest.raises(TrackingError, match=unknown):
        evaluate(TrainConfig(), options(), mlflow_run_id=unknown)
    assert script.calls == []


def test_a_checkpoint_is_evaluated_as_its_run_sampled_it(script: Script, options: Options, machine: Path) -> None:
    run_id = train(TrainConfig(), options(checkpoint__every_steps=1))["run_id"]
    script.calls.clear()
    # Neither the model nor its dtype, which is bfloat16 by default, nor training problems are named.
    named = {
        path: value for path, value in options().items() if path not in ("model.path", "model.dtype", "data.train")
    }
    evaluate(TrainConfig(), named, checkpoint=f"{run_id}@1")
    assert script.calls == ["start", "evaluate-0", "close"]
    model = script.clusters[-1].config.model
    path = Path(model.path)
    assert path.parent == machine / ".drgrpo" / "cache" / "models" and path.name.startswith(f"{run_id}-000001-")
    assert model.dtype == "float32"
    evaluate(TrainConfig(), named | {"model.dtype": "bfloat16"}, checkpoint=run_id)
    model = script.clusters[-1].config.model
    assert Path(model.path).name.startswith(f"{run_id}-000002-") and model.dtype == "bfloat16"


def test_a_wrong_checkpoint_starts_nothing(script: Script, options: Options, machine: Path) -> None:
    for given, told in (
        ({"checkpoint": "nobody@1"}, "checkpoint = 'nobody@1': there is no run"),
        ({"checkpoint": "a", "mlflow_run_id": "b"}, "checkpoint = 'a': mlflow_run_id = 'b' names a policy too"),
    ):
        with pytest.raises(ConfigError, match=told):
            evaluate(TrainConfig(), options(), **given)
    assert script.calls == [] and not (machine / ".drgrpo" / "runs").exists()
