"""A real Prefect server and a real MLflow store for the tests of the flows."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deployments.environment import DEFAULTS
from tests.flows.fake_cluster import Script

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A Prefect server of its own for this process."""
    variables = DEFAULTS
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the tiny model, written by another process: this one stays free of torch."""
    path = tmp_path_factory.mktemp("tiny-model")
    code = f"from pathlib import Path; from tests.tiny_model import build_tiny_model as b; b(Path({str(path)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a dozen sums for training and a dozen held out."""
    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "test"):
        rows = [{"question": f"{split}: {i} + 1", "answer": str(i + 1)} for i in range(12)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without a run; making one takes seconds, copying it none."""
    from drgrpo.tracking import check_tracking_uri

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    check_tracking_uri(f"sqlite:///{path}")
    return path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> Path:
    """A machine whose state lies under a temporary directory: runs in `.drgrpo/runs`, MLflow in `.drgrpo/mlflow.db`."""
    for name in [name for name in os.environ if name.startswith(("DRGRPO_", "MLFLOW_TRACKING"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DRGRPO_ROOT", str(tmp_path))
    monkeypatch.setenv("DRGRPO_DEVICE", "cpu")
    (tmp_path / ".drgrpo").mkdir()
    shutil.copy(empty_store, tmp_path / ".drgrpo" / "mlflow.db")
    return tmp_path


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, machine: Path) -> Script:
    """The script of fake engines, which stand in for those of every run."""
    script = Script()
    monkeypatch.setattr("drgrpo.opening.Cluster", script.start)
    monkeypatch.setattr("flows.recovery._DELAY_S", 0.0)
    return script


@pytest.fixture(scope="session")
def options(tiny_model: Path, data: Path) -> Callable[..., dict[str, Any]]:
    """Overrides for the tiny model; more by dotted path, `.` written as `__`."""

    def make(**changes: Any) -> dict[str, Any]:
        return {
            "total_steps": 2,
            "model.path": str(tiny_model),
            "model.dtype": "float32",
            "data.train": str(data),
            "data.eval": str(data),
            "data.prompts_per_step": 4,
            "data.max_prompt_tokens": 64,
            "rollout.group_size": 4,
            "rollout.max_completion_tokens": 16,
            "rollout.max_num_seqs": 32,
            "trainer.completions_per_update": 16,
            "evaluation.every_steps": 0,
            "evaluation.num_problems": 6,
            "evaluation.samples_per_problem": 4,
            "checkpoint.export": True,
        } | {name.replace("__", "."): value for name, value in changes.items()}

    return make
