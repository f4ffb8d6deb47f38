"""A training checkpoint as the model of an evaluation: which one is meant, and where it lies as a model directory."""

import logging
from pathlib import Path

from drgrpo.checkpoints import CheckpointError, checkpoint_path, newest_whole
from drgrpo.checkpoints.directory import checkpoint_step
from drgrpo.checkpoints.model import model_directory
from drgrpo.config.errors import ConfigError, Mistake
from drgrpo.config.sections import ModelConfig
from drgrpo.description import read_description
from drgrpo.models import ModelError, resolve_model
from drgrpo.origin import NONE_SAVED, parse_origin
from drgrpo.settings import Settings

FIELD = "checkpoint"

logger = logging.getLogger(__name__)


def stored_policy(text: str, settings: Settings) -> ModelConfig:
    """The policy of a checkpoint as a model: its run's `model`, with a directory in the cache as its path.

    Args:
        text: `<run id>` for the run's newest whole checkpoint, or `<run id>@<step>`.
        settings: Of the machine.

    Raises ConfigError about `checkpoint` when there is no such run or no such whole checkpoint, and when the model that
    the run trained is not there any more.
    """
    origin = parse_origin(text, settings.runs_dir, field=FIELD)
    assert origin is not None
    directory = settings.runs_dir / origin.run_id
    path = _newest(text, directory) if origin.step is None else checkpoint_path(directory / "checkpoints", origin.step)
    description = read_description(directory)
    assert description is not None
    model = description.config.model
    settings.use_hub_token()
    try:
        source = resolve_model(model.path, revision=model.revision, cache_dir=settings.cache_dir)
        name = f"{origin.run_id}-{checkpoint_step(path):06d}"
        made = model_directory(path, source, settings.cache_dir / "models", name=name, dtype=model.dtype)
    except (ModelError, CheckpointError, OSError) as error:
        remedy = "its config and tokenizer are those of the model that the run trained: see that they are there"
        raise ConfigError([Mistake(FIELD, text, f"it cannot be made a model: {error}", remedy)]) from error
    return model.model_copy(update={"path": str(made)})


def _newest(text: str, directory: Path) -> Path:
    path, _, skipped = newest_whole(directory / "checkpoints")
    if path is None:
        problem = "; ".join(["the run has no whole checkpoint", *skipped])
        raise ConfigError([Mistake(FIELD, text, problem, NONE_SAVED)])
    for reason in skipped:
        logger.warning("checkpoint skipped: %s", reason)
    return path
