"""Where a run starts: afresh, where another process left it, or at a stored step of another run (a fork)."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from drgrpo.checkpoints import CheckpointError, checkpoint_path, find_checkpoints, read_whole
from drgrpo.checkpoints.directory import PARTIAL, checkpoint_step, looks_whole
from drgrpo.config import TrainConfig
from drgrpo.config.errors import ConfigError, Mistake
from drgrpo.config.output_lock import check_output_directory
from drgrpo.config.overrides import recipe_digest
from drgrpo.description import Description, read_description, recipe_mistakes, write_description
from drgrpo.run_id import check_run_id

FIELD = "resume_from"


@dataclass(frozen=True)
class Origin:
    """`<run id>`: go on with that run; `<run id>@<step>`: fork it there."""

    run_id: str
    step: int | None = None

    def __str__(self) -> str:
        return self.run_id if self.step is None else f"{self.run_id}@{self.step}"


def parse_origin(text: str, runs_dir: Path) -> Origin | None:
    """The origin that `text` names; None for an empty one.

    Raises ConfigError for a malformed one, an unknown run, and a step without a whole checkpoint.
    """
    if not text:
        return None
    run_id, at, step = text.partition("@")
    if at and not step.isdecimal():
        raise ConfigError([Mistake(FIELD, text, "not of the form <run id> or <run id>@<step>", "e.g. 8f14e45f-...@16")])
    check_run_id(run_id, field=FIELD)
    directory = runs_dir / run_id
    if read_description(directory) is None:
        raise ConfigError([Mistake(FIELD, text, f"there is no run in {directory}", f"name a directory of {runs_dir}")])
    if not at:
        return Origin(run_id)
    _check_step(directory, text, int(step))
    return Origin(run_id, int(step))


def check_origin(origin: Origin, config: TrainConfig, runs_dir: Path) -> list[Mistake]:
    """What keeps `config` from starting at `origin`: a run with other numbers or in use, a fork without steps to go."""
    if origin.step is not None:
        return _check_rest(origin.step, config)
    directory = runs_dir / origin.run_id
    description = read_description(directory)
    different = recipe_mistakes(description, config) if description else []
    return [*different, *check_output_directory(directory)]


def fork_run(origin: Origin, run_id: str, config: TrainConfig, runs_dir: Path) -> None:
    """Make the directory of run `run_id`, which starts from the origin's step; nothing happens if it is there already.

    Raises ConfigError when the run is not to go beyond that step.
    """
    directory, parent = runs_dir / run_id, read_description(runs_dir / origin.run_id)
    assert origin.step is not None and parent is not None
    if mistakes := _check_rest(origin.step, config):
        raise ConfigError(mistakes)
    if read_description(directory) is None:
        _adopt_checkpoint(runs_dir / origin.run_id / "checkpoints", directory / "checkpoints", origin.step)
        digest = recipe_digest(parent.config)
        description = Description(config, "", str(origin), parent.mlflow_run_id, digest, first_step=origin.step)
        write_description(directory, description)


def _adopt_checkpoint(source: Path, target: Path, step: int) -> None:
    """Files are linked where the file system can, so nothing is copied, and pruning one run leaves the other whole."""
    whole = checkpoint_path(target, step)
    partial = whole.with_name(whole.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(whole, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(checkpoint_path(source, step), partial, copy_function=_link)
    partial.rename(whole)


def _check_rest(step: int, config: TrainConfig) -> list[Mistake]:
    if step < config.total_steps:
        return []
    return [Mistake("total_steps", config.total_steps, f"the fork starts after {step} steps", f"give more than {step}")]


def _check_step(directory: Path, text: str, step: int) -> None:
    root = directory / "checkpoints"
    try:
        read_whole(checkpoint_path(root, step))
    except CheckpointError as error:
        there = [checkpoint_step(path) for path in reversed(find_checkpoints(root)) if looks_whole(path)]
        remedy = f"there are: {', '.join(map(str, there))}" if there else "the run has none; start it from the model"
        problem = f"no whole checkpoint of step {step}: {error}"
        raise ConfigError([Mistake(FIELD, text, problem, remedy)]) from None


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
