"""Everything that can be known to be wrong before an engine starts, told at once."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drgrpo.architecture import unsupported_parts
from drgrpo.config import TrainConfig
from drgrpo.config.checks import CHECKS, Checks, check_config, check_machine, check_model_context
from drgrpo.config.device_memory import check_device_memory, model_shape, smallest_device
from drgrpo.config.errors import ConfigError, Mistake, Severity
from drgrpo.config.overrides import judged_config
from drgrpo.inspection import EVAL, MODEL, TRAIN, Inspection
from drgrpo.preflight_data import check_completions, check_held_out, check_prompts, check_step, check_train
from drgrpo.rewards.pool import check_reward_functions
from drgrpo.settings import Settings
from drgrpo.tracking import MlflowAway, check_tracking_uri

Values = TrainConfig | Mapping[str, Any]

logger = logging.getLogger(__name__)


class _Told(Mistake):
    """A mistake whose text is already whole: field, value, problem and remedy."""

    def __str__(self) -> str:
        return self.problem


def checked_config(
    config: Values,
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
    return passed(*judge(config, overrides, settings, checks=checks, train=train, is_tracked=is_tracked), checks)


def judge(
    config: Values,
    overrides: Mapping[str, Any],
    settings: Settings,
    *,
    checks: Checks = CHECKS,
    known: Sequence[Mistake] = (),
    train: bool = True,
    is_tracked: bool = False,
) -> tuple[TrainConfig, list[Mistake]]:
    """As `checked_config`, with the mistakes returned, after those that are `known`.

    What a mistake leaves in doubt is not judged: a default in the place of a wrong value is nobody's mistake.
    """
    settings.use_hub_token()
    resolved, mistakes = judged_config(config, overrides, checks)
    run = Inspection(resolved, settings, [*known, *mistakes], train=train)
    for check in _CHECKS:
        if run.doubts(*check.rests_on) or (check.of_training and not train):
            continue
        try:
            run.mistakes += check.check(run) or []
        except (ValueError, OSError, RuntimeError) as error:
            is_bearable = is_tracked and isinstance(error, MlflowAway)
            severity: Severity = "warning" if is_bearable else "error"
            run.mistakes.append(_Told(check.field, None, str(error), "", severity=severity))
    return resolved, list({str(mistake): mistake for mistake in run.mistakes}.values())


def passed(config: TrainConfig, mistakes: Sequence[Mistake], checks: Checks) -> TrainConfig:
    """`config`, its warnings logged. Raises ConfigError with the mistakes that are errors, if there are any."""
    if errors := [mistake for mistake in mistakes if mistake.severity == "error"]:
        raise ConfigError(errors)
    for warning in (*check_config(config, checks), *mistakes):
        logger.warning("%s", warning)
    return config


def _check_model(run: Inspection) -> list[Mistake]:
    reasons = unsupported_parts(run.model.config)
    remedy = "choose a model without; Llama and Qwen2 have none of these"
    return [Mistake("model.path", run.config.model.path, " and ".join(reasons), remedy)] if reasons else []


def _check_context(run: Inspection) -> list[Mistake]:
    length = run.model.context_length
    return check_model_context(run.config, length) if length else []


def _check_rewards(run: Inspection) -> list[Mistake]:
    functions = run.config.reward.functions
    try:
        check_reward_functions(functions)
    except ValueError as error:
        remedy = "correct the path, or the module that it names"
        return [Mistake("reward.functions", dict(functions), str(error), remedy)]
    return []


def _check_tracking(run: Inspection) -> None:
    settings = run.settings
    if settings.mlflow_tracking_uri.startswith("sqlite:///"):
        settings.root.joinpath(".drgrpo").mkdir(parents=True, exist_ok=True)
    check_tracking_uri(settings.mlflow_tracking_uri, field="DRGRPO_MLFLOW_TRACKING_URI")


def _check_machine(run: Inspection) -> list[Mistake]:
    devices = run.devices
    return check_machine(
        run.config,
        run.settings,
        num_parameters=None if run.doubts(*MODEL) else run.model.num_parameters,
        on_cpu=run.is_on_cpu,
        num_devices=None if devices is None else len(devices),
        train=run.train_too,
    )


def _check_device_memory(run: Inspection) -> list[Mistake]:
    shape = model_shape(run.model.config, run.model.num_parameters)
    size = smallest_device(run.devices) if run.devices else None
    if not shape or not size:
        return []
    return check_device_memory(run.config, shape, device_bytes=size, shared_by=run.settings.runs_per_gpu)


@dataclass(frozen=True, slots=True)
class _Check:
    """`field` is that of an error that it raises; with one of `rests_on` in doubt it is left out."""

    field: str
    check: Callable[[Inspection], list[Mistake] | None]
    rests_on: tuple[str, ...]
    of_training: bool = False


_LIMITS = ("data.max_prompt_tokens", "rollout.max_completion_tokens", "evaluation.max_completion_tokens")
_PROMPT = ("model.trust_remote_code", "data.prompt_style", "data.system_prompt", "data.prompt_template")
_PLACES = ("DRGRPO_ROOT", "DRGRPO_RUNS_DIR", "DRGRPO_DEVICE", "DRGRPO_RAY_ADDRESS")
_HOST = (
    *("model.dtype", "loss.kl_coef", "checkpoint.keep_last", "placement.num_rollout_engines"),
    *("trainer.num_ranks", "trainer.offload_optimizer", "DRGRPO_CPU_KVCACHE_GIB"),
)
_DEVICE = (
    *("model.dtype", "loss.kl_coef", "rollout.gpu_memory_utilization", "placement.sleep", "trainer.num_ranks"),
    *("trainer.tokens_per_microbatch", "trainer.logprob_chunk_tokens"),
    *("trainer.gradient_checkpointing", "trainer.offload_optimizer"),
)

_CHECKS = (
    _Check("model.path", _check_model, MODEL, of_training=True),
    _Check("model.path", _check_context, (*MODEL, *_LIMITS)),
    _Check("data.train", check_train, TRAIN, of_training=True),
    _Check("data.eval", check_held_out, EVAL),
    _Check("data.completion_field", check_completions, (*TRAIN, "data.completion_field"), of_training=True),
    _Check("data.train", check_step, (*TRAIN, *EVAL, "data.prompts_per_step"), of_training=True),
    _Check("data.prompt_style", check_prompts, (*MODEL, *_PROMPT, "data.max_prompt_tokens")),
    _Check("reward.functions", _check_rewards, ("reward.functions",)),
    _Check("DRGRPO_MLFLOW_TRACKING_URI", _check_tracking, ("DRGRPO_MLFLOW_TRACKING_URI", "DRGRPO_ROOT")),
    _Check("machine", _check_machine, (*_HOST, *_PLACES)),
    _Check(
        "rollout.gpu_memory_utilization", _check_device_memory, (*MODEL, *_LIMITS, *_DEVICE, *_PLACES), of_training=True
    ),
)
