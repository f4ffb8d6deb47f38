"""Everything that can be known to be wrong before an engine starts, told at once."""

import json
import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from drgrpo.architecture import unsupported_parts
from drgrpo.checkpoints import CheckpointError, read_header
from drgrpo.config import TrainConfig
from drgrpo.config.checks import CHECKS, Checks, check_config, check_machine, check_model_context
from drgrpo.config.errors import ConfigError, Mistake
from drgrpo.config.overrides import apply_overrides, load_config
from drgrpo.data.errors import DataError
from drgrpo.data.sources import Source, load_problems, load_splits
from drgrpo.demonstrations import load_completions
from drgrpo.device_lock import visible_devices
from drgrpo.models import check_model, model_context_length
from drgrpo.packaged_model import PACKAGED_MODELS
from drgrpo.problems import sources
from drgrpo.rewards.pool import check_reward_functions
from drgrpo.settings import Settings
from drgrpo.tracking import MlflowAway, check_tracking_uri

Check = Callable[[TrainConfig, Settings], list[Mistake]]

logger = logging.getLogger(__name__)


class _Told(Mistake):
    """A mistake whose text is already whole: field, value, problem and remedy."""

    def __str__(self) -> str:
        return self.problem


def checked_config(
    config: TrainConfig | Mapping[str, Any],
    overrides: Mapping[str, Any],
    settings: Settings,
    *,
    checks: Checks = CHECKS,
    train: bool = True,
    is_tracked: bool = False,
) -> TrainConfig:
    """The configuration with its overrides, and proof that model, data, rewards, machine and MLflow are there.

    `checks` are those of what the configuration is for: reinforcement learning, supervised training or evaluation.
    Without `train` neither training problems nor a trainer are asked for. A run that `is_tracked` in MLflow already
    goes on while that is away, which is then a warning.

    Warnings are logged. Raises ConfigError with every mistake: field, value and remedy of each.
    """
    settings.use_hub_token()
    resolved, mistakes = _resolved(config, overrides, checks)
    known = {mistake.field for mistake in mistakes}
    for field, check in (_CHECKS if train else _EVALUATION_CHECKS).items():
        if field in known:
            continue
        try:
            mistakes += check(resolved, settings)
        except (ValueError, OSError, RuntimeError) as error:
            is_bearable = is_tracked and isinstance(error, MlflowAway)
            mistakes.append(_Told(field, None, str(error), "", severity="warning" if is_bearable else "error"))
    errors = [mistake for mistake in mistakes if mistake.severity == "error"]
    if errors:
        raise ConfigError(errors)
    for warning in (*check_config(resolved, checks), *mistakes):
        logger.warning("%s", warning)
    return resolved


def _resolved(
    config: TrainConfig | Mapping[str, Any], overrides: Mapping[str, Any], checks: Checks
) -> tuple[TrainConfig, list[Mistake]]:
    """The configuration and its mistakes; without the overrides that are wrong, so that the rest can be judged."""
    try:
        return load_config(config, overrides, checks=checks), []
    except ConfigError as error:
        mistakes = list(error.mistakes)
    wrong = {mistake.field for mistake in mistakes}
    try:
        return apply_overrides(config, {k: v for k, v in overrides.items() if k not in wrong}), mistakes
    except ConfigError:
        raise ConfigError(mistakes) from None


def _check_model(config: TrainConfig, settings: Settings) -> list[Mistake]:
    model = config.model
    check_model(model.path, revision=model.revision, cache_dir=settings.cache_dir)
    path = Path(model.path).expanduser() / "config.json"
    if path.is_file() and (reasons := unsupported_parts(json.loads(path.read_text()))):
        remedy = "choose a model without; Llama and Qwen2 have none of these"
        return [Mistake("model.path", model.path, " and ".join(reasons), remedy)]
    return _check_context(config)


def _check_sampled_model(config: TrainConfig, settings: Settings) -> list[Mistake]:
    """What the trainer cannot compute, vLLM can."""
    check_model(config.model.path, revision=config.model.revision, cache_dir=settings.cache_dir)
    return _check_context(config)


def _check_context(config: TrainConfig) -> list[Mistake]:
    model = config.model
    length = model_context_length(model.path, revision=model.revision)
    return check_model_context(config, length) if length else []


def _check_data(config: TrainConfig, _: Settings) -> list[Mistake]:
    train, held_out = sources(config)
    try:
        splits = load_splits(train, held_out)
        load_completions(config)
    except DataError as error:
        # The first faulty source hides the second.
        each = [text for source in (train, held_out) if (text := _fault(source))]
        return [_Told("data", None, text, "") for text in each or [str(error)]]
    wanted, found = config.data.prompts_per_step, len(splits.train)
    if wanted <= found:
        return []
    problem = f"data.train has {found} problems, so a step would hold some twice, with the same samples"
    return [Mistake("data.prompts_per_step", wanted, problem, f"lower it to {found}, or give more problems")]


def _check_held_out(config: TrainConfig, _: Settings) -> list[Mistake]:
    load_problems(sources(config)[1])
    return []


def _fault(source: Source) -> str:
    try:
        load_problems(source)
    except DataError as error:
        return str(error)
    return ""


def _check_rewards(config: TrainConfig, _: Settings) -> list[Mistake]:
    try:
        check_reward_functions(config.reward.functions)
    except ValueError as error:
        remedy = "correct the path, or the module that it names"
        return [Mistake("reward.functions", dict(config.reward.functions), str(error), remedy)]
    return []


def _check_machine(config: TrainConfig, settings: Settings, *, train: bool = True) -> list[Mistake]:
    num_gpus = 0 if settings.device == "cpu" else len(visible_devices())
    on_cpu = settings.device == "cpu" or (settings.device == "auto" and num_gpus == 0)
    # Of a cluster this machine knows neither memory nor devices.
    elsewhere = bool(settings.ray_address)
    return check_machine(
        config,
        settings,
        num_parameters=_num_parameters(config.model.path),
        on_cpu=on_cpu and not elsewhere,
        num_devices=None if elsewhere else num_gpus,
        train=train,
    )


def _num_parameters(path: str) -> int | None:
    """Parameters of a model whose weights are here; None of one that is on the Hub."""
    if path in PACKAGED_MODELS:
        return PACKAGED_MODELS[path].num_bytes // 4
    files = sorted(Path(path).expanduser().glob("model*.safetensors"))
    try:
        sizes = [math.prod(tensor.shape) for file in files for tensor in read_header(file).values()]
    except CheckpointError:
        return None  # the check of the model says what is wrong with it
    return sum(sizes) or None


def _check_tracking(_: TrainConfig, settings: Settings) -> list[Mistake]:
    if settings.mlflow_tracking_uri.startswith("sqlite:///"):
        settings.root.joinpath(".drgrpo").mkdir(parents=True, exist_ok=True)
    check_tracking_uri(settings.mlflow_tracking_uri)
    return []


_CHECKS: dict[str, Check] = {
    "model.path": _check_model,
    "data": _check_data,
    "reward.functions": _check_rewards,
    "machine": _check_machine,
    "DRGRPO_MLFLOW_TRACKING_URI": _check_tracking,
}
_EVALUATION_CHECKS: dict[str, Check] = _CHECKS | {
    "model.path": _check_sampled_model,
    "data": _check_held_out,
    "machine": partial(_check_machine, train=False),
}
