"""What `prefect.yaml` asks at deploy time: the values of deployments/*.yaml, and where the project lies."""

import re
from pathlib import Path
from typing import Any

import yaml

from drgrpo.config import TrainConfig
from drgrpo.config.errors import ConfigError, Mistake
from drgrpo.config.overrides import load_config

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent


def deployment_names() -> list[str]:
    """Names of the YAML files beside this module, without their ending."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_deployment(name: str, *, extended_by: tuple[str, ...] = ()) -> TrainConfig:
    """The whole configuration that `deployments/<name>.yaml` stands for.

    The key `extends: <other>` takes another file's values as defaults. Raises `ConfigError` with all mistakes of the
    file, whose path is in the error's notes.
    """
    if name not in deployment_names() or name in extended_by:
        problem = "extends itself" if name in extended_by else "no such file in deployments/"
        raise ConfigError([Mistake("extends", name, problem, f"there are: {', '.join(deployment_names())}")])
    path = FOLDER / f"{name}.yaml"
    try:
        with path.open() as file:
            values = yaml.safe_load(file)
        if not isinstance(values, dict) or "extends" not in values:
            return load_config(values)
        base = values.pop("extends")
        return load_config(load_deployment(base, extended_by=(*extended_by, name)), values)
    except ConfigError as error:
        error.add_note(f"in {path}")
        raise


def read_configs() -> dict[str, Any]:
    """The build step of `prefect.yaml`: `{"root": <directory>, "configs": {<name>: <all values>}}`.

    Every value of a configuration is spelled out, defaults too, so that the form in the UI shows the run as it will be.
    Raises `ConfigError` for a name that `prefect.yaml` uses and no file has, because Prefect itself deploys nothing for
    it with no more than a warning.
    """
    used = set(re.findall(r"{{\s*configs\.([^\s}]+)\s*}}", (ROOT / "prefect.yaml").read_text()))
    unknown = sorted(used.difference(deployment_names()))
    if unknown:
        remedy = f"there are: {', '.join(deployment_names())}"
        raise ConfigError([Mistake("prefect.yaml", f"configs.{name}", "no such file", remedy) for name in unknown])
    configs = {name: load_deployment(name).model_dump(mode="json") for name in deployment_names()}
    return {"root": str(ROOT), "configs": configs}
