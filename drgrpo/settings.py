"""What changes the machine and never the numbers: addresses, directories, threads. Prefix `DRGRPO_`."""

import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from drgrpo.config.errors import ConfigError, Mistake
from drgrpo.config.paths import FIELDS, expected

PREFIX = "DRGRPO_"


class Settings(BaseSettings):
    """Settings of the machine; `load_settings` reads them and refuses unknown `DRGRPO_` variables."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    root: Path = Field(Path(), description="Directory that relative directories below start from; empty: the current")
    runs_dir: Path = Field(Path(".drgrpo/runs"), description="Output of runs: tables, checkpoints, exported policies")
    cache_dir: Path = Field(Path(".drgrpo/cache"), description="Converted weights of packaged models")
    ray_address: str = Field("", description="Address of a Ray cluster, or `auto`; empty starts Ray inside the run")
    mlflow_tracking_uri: str = Field(
        "", description="MLflow store; empty: MLFLOW_TRACKING_URI, else SQLite in .drgrpo/mlflow.db"
    )
    mlflow_ui_url: str = Field("http://127.0.0.1:5000", min_length=1, description="Where links to MLflow's UI point")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes GPUs where there are any")
    runs_per_gpu: int = Field(
        1, ge=1, le=64, description="Runs that may use a GPU at once; small models leave most of one idle"
    )
    num_threads: int = Field(0, ge=0, le=4096, description="CPU threads of each engine; 0 means all cores")
    cpu_kvcache_gib: float = Field(1.0, gt=0, le=4096, description="KV cache of vLLM on CPU, in GiB")
    max_restarts: int = Field(
        3, ge=0, description="Restarts of lost engines without a finished step between them, before the run gives up"
    )
    call_timeout_s: float = Field(
        7200.0, gt=0, description="Longest call of an engine; one that hangs prints the stacks of its threads and ends"
    )
    preemption_notice_s: float = Field(
        0.0, ge=0, description="Seconds from SIGTERM to SIGKILL that may be spent on a checkpoint; 0: stop at once"
    )
    hub_token: SecretStr = Field(SecretStr(""), description="Hugging Face token; empty: HF_TOKEN or the stored login")

    @property
    def artifact_location(self) -> str | None:
        """Where a local MLflow store keeps artifacts; None where a server decides."""
        local = self.mlflow_tracking_uri.startswith("sqlite:")
        return (self.root / ".drgrpo" / "mlflow-artifacts").as_uri() if local else None

    def use_hub_token(self) -> None:
        """Give the token to the Hub's client in this process and in those that it starts."""
        if token := self.hub_token.get_secret_value():
            os.environ["HF_TOKEN"] = token


def load_settings() -> Settings:
    """Settings of the environment, directories made absolute.

    Raises `ConfigError` that names each unknown `DRGRPO_` variable with the nearest known one, and each bad value.
    """
    settings, mistakes = read_settings()
    if mistakes:
        raise ConfigError(mistakes)
    return settings


def read_settings() -> tuple[Settings, list[Mistake]]:
    """As `load_settings`, with the mistakes returned, and defaults in place of bad values."""
    mistakes, defaults = unknown_variables(os.environ), {}
    try:
        settings = Settings()
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            name = str(detail["loc"][0])
            remedy = f"allowed: {expected(Settings.model_fields[name])}"
            mistakes.append(Mistake(f"{PREFIX}{name.upper()}", detail["input"], detail["msg"].lower(), remedy))
            defaults[name] = Settings.model_fields[name].get_default()
        settings = Settings(**defaults)
    return resolved(settings, fallback_uri=os.environ.get("MLFLOW_TRACKING_URI", "")), mistakes


def unknown_variables(environ: Mapping[str, str]) -> list[Mistake]:
    """A mistake for each variable with our prefix that no setting reads; what may be a secret is not shown."""
    mistakes = []
    for variable in sorted(environ):
        name = variable.removeprefix(PREFIX).lower()
        if name != variable.lower() and name not in Settings.model_fields:
            nearest = next(iter(get_close_matches(name, Settings.model_fields, n=1, cutoff=0.6)), "")
            secret = nearest == "hub_token" or any(word in name for word in ("token", "key", "secret", "password"))
            value = "***" if secret else environ[variable]
            mistakes.append(Mistake(variable, value, "no such setting of the machine", _remedy(name, nearest)))
    return mistakes


def _remedy(name: str, nearest: str) -> str:
    same_name = [path for path in FIELDS if path.replace(".", "_") == name.replace("__", "_").replace(".", "_")]
    if same_name:
        return f"the environment never alters a hyperparameter: set `{same_name[0]}` in the configuration or overrides"
    if nearest:
        return f"did you mean `{PREFIX}{nearest.upper()}`?"
    return f"there are: {', '.join(f'{PREFIX}{known.upper()}' for known in Settings.model_fields)}"


def resolved(settings: Settings, *, fallback_uri: str = "") -> Settings:
    """Absolute directories, and the MLflow store that is meant by an empty one."""
    root = settings.root.expanduser().absolute()
    store = settings.mlflow_tracking_uri or fallback_uri or f"sqlite:///{root / '.drgrpo' / 'mlflow.db'}"
    directories = {
        "root": root,
        "runs_dir": root / settings.runs_dir.expanduser(),
        "cache_dir": root / settings.cache_dir.expanduser(),
    }
    return settings.model_copy(update={**directories, "mlflow_tracking_uri": store})
