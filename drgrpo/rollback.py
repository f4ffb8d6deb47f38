"""A rollback: a fork of the run at an earlier checkpoint with a lower learning rate, which takes the run's place."""

import re
from dataclasses import replace
from pathlib import Path

from drgrpo.checkpoints import newest_whole
from drgrpo.checkpoints.directory import checkpoint_step
from drgrpo.config import TrainConfig
from drgrpo.config.overrides import apply_overrides
from drgrpo.description import check_recipe, read_description, write_description
from drgrpo.origin import Origin, fork_run

_SUFFIX = re.compile(r"-rollback-(\d+)$")


def num_rollbacks(run_id: str) -> int:
    """Rollbacks that lie behind a run."""
    found = _SUFFIX.search(run_id)
    return int(found[1]) if found else 0


def roll_back(run_id: str, last_good: int, config: TrainConfig, runs_dir: Path) -> str | None:
    """Make the run that goes on from the newest checkpoint of at most `last_good` steps; returns its id.

    None when the run has no such checkpoint. A run that was bad from its first step starts there once more: a fork
    from the checkpoint that it adopted, any other from the model.
    """
    directory, parent = runs_dir / run_id, read_description(runs_dir / run_id)
    assert parent is not None
    at_most = max(last_good, parent.first_step)
    path = newest_whole(directory / "checkpoints", at_most=at_most).path
    if path is None and at_most > 0:
        return None
    new_id = f"{_SUFFIX.sub('', run_id)}-rollback-{num_rollbacks(run_id) + 1}"
    lower = config.optimizer.lr * config.health.rollback_lr_factor
    fork_run(Origin(run_id, checkpoint_step(path) if path else 0), new_id, _with_lr(config, lower), runs_dir)
    write_description(directory, replace(parent, continued_by=new_id))
    return new_id


def is_tracked(run_id: str, runs_dir: Path) -> bool:
    """Whether `run_id`, or the run that goes on for it, is in MLflow already: then it goes on while that is away."""
    description = read_description(runs_dir / run_id)
    while description and description.continued_by:
        description = read_description(runs_dir / description.continued_by)
    return bool(description and description.mlflow_run_id)


def newest_run(run_id: str, config: TrainConfig, runs_dir: Path) -> tuple[str, TrainConfig]:
    """The run that goes on for `run_id` after its rollbacks, and `config` with its learning rate; often itself.

    Raises ConfigError when `config` is not what `run_id` was started with.
    """
    while (description := read_description(runs_dir / run_id)) and description.continued_by:
        check_recipe(description, config)
        run_id = description.continued_by
        newer = read_description(runs_dir / run_id)
        if newer is None:
            raise FileNotFoundError(f"{runs_dir / run_id} is gone, which went on after a rollback")
        config = _with_lr(config, newer.config.optimizer.lr)
    return run_id, config


def _with_lr(config: TrainConfig, lr: float) -> TrainConfig:
    """The learning rate is all that a rollback changes."""
    return apply_overrides(config, {"optimizer.lr": lr})
