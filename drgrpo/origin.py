"""Where a run starts: afresh, where another process left it, or at a stored step of another run (a fork)."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from drgrpo.checkpoints import CheckpointError, checkpoint_path, find_checkpoints, read_state, read_whole
from drgrpo.checkpoints.directory import PARTIAL, checkpoint_step, looks_whole
from drgrpo.checkpoints.files import link_file
from drgrpo.config import TrainConfig
from drgrpo.config.errors import ConfigError, Mistake
from drgrpo.config.output_lock import hold_output_directory, is_held_by
from drgrpo.description import Description, read_description, recipe_mistakes, write_description
from drgrpo.durable import sync_directory
from drgrpo.run_id import check_run_id

FIELD = "resume_from"
NONE_SAVED = "there is none; checkpoint.every_steps and checkpoint.every_minutes say when a run saves one"
_NUM_NAMED = 5


@dataclass(frozen=True)
class Origin:
    """`<run id>`: go on with that run; `<run id>@<step>`: fork it there."""

    run_id: str
    step: int | None = None

    def __str__(self) -> str:
        return self.run_id if self.step is None else f"{self.run_id}@{self.step}"


def parse_origin(text: str, runs_dir: Path, *, field: str = FIELD) -> Origin | None:
    """The origin that `text` names; None for an empty one.

    Raises ConfigError about `field` for a malformed one, an unknown run, and a step without a whole checkpoint.
    """
    if not text:
        return None
    run_id, at, step = text.partition("@")
    if at and not step.isdecimal():
        raise ConfigError([Mistake(field, text, "not of the form <run id> or <run id>@<step>", "e.g. 8f14e45f-...@16")])
    check_run_id(run_id, field=field)
    directory = runs_dir / run_id
    if read_description(directory) is None:
        raise ConfigError([Mistake(field, text, f"there is no run in {directory}", _runs_there(runs_dir))])
    if not at:
        return Origin(run_id)
    try:
        read_whole(checkpoint_path(directory / "checkpoints", int(step)))
    except CheckpointError as error:
        problem = f"no whole checkpoint of step {int(step)}: {error}"
        raise ConfigError([Mistake(field, text, problem, _other_steps(directory, int(step)))]) from None
    return Origin(run_id, int(step))


def check_origin(origin: Origin, config: TrainConfig, runs_dir: Path, *, own_id: str) -> list[Mistake]:
    """What keeps `config` from starting at `origin`: a run with other numbers or in use, a fork without steps to go.

    A run that another process of flow run `own_id` goes on with is not in use: that one is waited for.
    """
    if origin.step is not None:
        return _check_rest(origin.step, config)
    directory = runs_dir / origin.run_id
    description = read_description(directory)
    different = recipe_mistakes(description, config) if description else []
    return [*different, *_in_use(directory, own_id)]


def fork_run(origin: Origin, run_id: str, config: TrainConfig, runs_dir: Path) -> None:
    """Make the directory of run `run_id`, which starts from the origin's step; nothing happens if it is there already.

    A run's step 0 is the model itself.

    Raises ConfigError when the run is not to go beyond that step, and CheckpointError for an unreadable checkpoint.
    """
    directory, parent = runs_dir / run_id, read_description(runs_dir / origin.run_id)
    assert origin.step is not None and parent is not None
    if mistakes := _check_rest(origin.step, config):
        raise ConfigError(mistakes)
    if read_description(directory) is None:
        directory.mkdir(parents=True, exist_ok=True)
        digest = ""
        if origin.step > 0:
            adopted = _adopt_checkpoint(
                runs_dir / origin.run_id / "checkpoints", directory / "checkpoints", origin.step
            )
            # The parent need not have saved it: it may have adopted it as well.
            digest = str(read_state(adopted).get("config_digest", ""))
        description = Description(config, "", str(origin), parent.mlflow_run_id, digest, first_step=origin.step)
        write_description(directory, description)
        sync_directory(runs_dir)


def _adopt_checkpoint(source: Path, target: Path, step: int) -> Path:
    """Files are linked where the file system can, so nothing is copied, and pruning one run leaves the other whole."""
    whole = checkpoint_path(target, step)
    partial = whole.with_name(whole.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(whole, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(checkpoint_path(source, step), partial, copy_function=link_file)
    sync_directory(partial)
    partial.rename(whole)
    sync_directory(target)
    sync_directory(target.parent)
    return whole


def _check_rest(step: int, config: TrainConfig) -> list[Mistake]:
    if step < config.total_steps:
        return []
    return [Mistake("total_steps", config.total_steps, f"the fork starts after {step} steps", f"give more than {step}")]


def _in_use(directory: Path, own_id: str) -> list[Mistake]:
    if is_held_by(directory, own_id):
        return []
    try:
        with hold_output_directory(directory):
            return []
    except ConfigError as error:
        return list(error.mistakes)


def _other_steps(directory: Path, step: int) -> str:
    """The steps that could be named instead; that files are there and of their size is all that is looked at."""
    found = [path for path in reversed(find_checkpoints(directory / "checkpoints")) if looks_whole(path)]
    there = [str(other) for other in map(checkpoint_step, found) if other != step]
    return f"there are: {', '.join(there)}" if there else NONE_SAVED


def _runs_there(runs_dir: Path) -> str:
    """The newest runs that trained; one that evaluated has no steps."""
    newest = sorted(runs_dir.glob("*/steps"), key=lambda path: path.stat().st_mtime, reverse=True)[:_NUM_NAMED]
    if not newest:
        return f"there is none in {runs_dir}; train one first"
    return f"name a directory of {runs_dir}, the newest are: {', '.join(path.parent.name for path in newest)}"
