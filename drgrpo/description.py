"""run.json: what a run's directory says of the run, so that another process can go on with it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from drgrpo.config import TrainConfig
from drgrpo.config.errors import ConfigError, Mistake
from drgrpo.config.overrides import recipe_difference
from drgrpo.durable import replace_json

_NAME = "run.json"


@dataclass(frozen=True)
class Description:
    """One run.

    Attributes:
        config: Its whole configuration.
        mlflow_run_id: Its run in MLflow.
        forked_from: `<run id>@<step>` that it started from; empty: from the model.
        parent_mlflow_run_id: That run in MLflow.
        origin_digest: Recipe digest that the checkpoint carries which it started from: that of the run that saved it.
        first_step: Iterations that lay behind it when it started.
        continued_by: Id of the run that took over after a rollback; empty: none.
    """

    config: TrainConfig
    mlflow_run_id: str
    forked_from: str = ""
    parent_mlflow_run_id: str = ""
    origin_digest: str = ""
    first_step: int = 0
    continued_by: str = ""


def read_description(directory: Path) -> Description | None:
    """The description of the run in `directory`; None when there is no run."""
    path = directory / _NAME
    if not path.exists():
        return None
    values = json.loads(path.read_text())
    return Description(**{**values, "config": TrainConfig.model_validate(values["config"])})


def write_description(directory: Path, description: Description) -> None:
    """Write it durably: whole or as it was."""
    values = {**asdict(description), "config": description.config.model_dump(mode="json")}
    replace_json(directory / _NAME, values)


def recipe_mistakes(description: Description, config: TrainConfig) -> list[Mistake]:
    """Every field in which `config` would change the numbers of the run."""
    remedy = "continue it unchanged, or fork it: resume_from = <run id>@<step>"
    return [
        Mistake(field, new, f"the run was started with {old!r}", remedy)
        for field, (old, new) in recipe_difference(description.config, config).items()
    ]


def check_recipe(description: Description, config: TrainConfig) -> None:
    """Raises ConfigError with the `recipe_mistakes`, if there are any."""
    if mistakes := recipe_mistakes(description, config):
        raise ConfigError(mistakes)
