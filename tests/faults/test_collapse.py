"""A run that really collapses, for its learning rate is far too high: the gates see it and act. Real engines."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drgrpo.config import TrainConfig
from drgrpo.description import read_description
from drgrpo.health import HealthStop
from drgrpo.report import read_history
from flows.train import train

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.usefixtures("prefect_server")]

Options = Callable[..., dict[str, Any]]
GATE = {"health.entropy.limit": 0.5, "health.entropy.patience": 1}


@pytest.fixture
def collapsing(options: Options) -> dict[str, Any]:
    """A step of 1.0 on every weight: the random model's entropy, log(vocabulary), falls to nothing."""
    return options(
        total_steps=8,
        optimizer__lr=1.0,
        reward__functions={"tests.flows.rewards:parity": 1.0},
        reward__truncated_reward="keep",
        checkpoint__every_steps=1,
        checkpoint__keep_last=9,
        checkpoint__export=False,
    )


def test_the_collapse_stops_the_run_and_its_last_good_checkpoint_stays(
    machine: Path, collapsing: dict[str, Any]
) -> None:
    with pytest.raises(HealthStop, match="entropy") as stopped:
        train(TrainConfig(), collapsing | GATE | {"health.entropy.action": "stop"})
    (directory,) = (machine / ".drgrpo" / "runs").iterdir()
    history = read_history(directory / "history.jsonl")
    assert history[0]["update/entropy"] > 3 and history[-1]["update/entropy"] < 0.5
    assert len(history) < 8
    good = stopped.value.finding.last_good
    assert (directory / "checkpoints" / f"step-{good:06d}" / "manifest.json").exists() or good == 0


def test_the_collapse_rolls_the_run_back_to_a_lower_learning_rate_until_its_rollbacks_are_used_up(
    machine: Path, collapsing: dict[str, Any]
) -> None:
    gate = GATE | {"health.entropy.action": "rollback", "health.rollback_lr_factor": 1e-4, "health.max_rollbacks": 1}
    summary = train(TrainConfig(), collapsing | gate | {"total_steps": 4})
    runs = sorted(path.name for path in (machine / ".drgrpo" / "runs").iterdir())
    assert len(runs) == 2 and summary["run_id"] == runs[1] == f"{runs[0]}-rollback-1"
    description = read_description(machine / ".drgrpo" / "runs" / runs[1])
    assert description is not None and description.config.optimizer.lr == pytest.approx(1e-4)
    history = read_history(machine / ".drgrpo" / "runs" / runs[1] / "history.jsonl")
    assert min(record["update/entropy"] for record in history) > 0.5
