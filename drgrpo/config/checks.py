"""Checks of sense: combinations of valid values that cannot learn, contradict each other, or do nothing.

Each check is a function from the configuration to its mistakes. Errors stop a run before any engine starts; warnings
are for what works and is probably not meant.
"""

from collections.abc import Callable

from drgrpo.config.checks_demonstrations import check_demonstrations
from drgrpo.config.checks_plan import (
    check_clip,
    check_data,
    check_held_out,
    check_microbatch,
    check_minibatch,
    check_placement,
    check_rollback,
    check_schedule,
)
from drgrpo.config.checks_signal import (
    check_advantage_options,
    check_correction,
    check_group,
    check_mean_normalization,
    check_overlong,
    check_reward,
    check_reward_names,
    check_sampling,
    check_stop,
)
from drgrpo.config.checks_text import check_text
from drgrpo.config.errors import Mistake
from drgrpo.config.inert import check_inert, check_unread_demonstrations
from drgrpo.config.machine import check_machine
from drgrpo.config.train import TrainConfig

__all__ = [
    "CHECKS",
    "DEMONSTRATION_CHECKS",
    "EVALUATION_CHECKS",
    "Checks",
    "check_config",
    "check_machine",
    "check_model_context",
]

Checks = tuple[Callable[[TrainConfig], list[Mistake]], ...]

CHECKS: Checks = (
    check_group,
    check_reward,
    check_reward_names,
    check_overlong,
    check_advantage_options,
    check_mean_normalization,
    check_sampling,
    check_stop,
    check_correction,
    check_minibatch,
    check_data,
    check_held_out,
    check_schedule,
    check_clip,
    check_microbatch,
    check_placement,
    check_rollback,
    check_text,
    check_inert,
    check_unread_demonstrations,
)
"""Of reinforcement learning."""

DEMONSTRATION_CHECKS: Checks = (
    check_demonstrations,
    check_reward,
    check_reward_names,
    check_overlong,
    check_advantage_options,
    check_stop,
    check_data,
    check_held_out,
    check_schedule,
    check_microbatch,
    check_placement,
    check_rollback,
    check_text,
    check_inert,
)
"""Of supervised training."""

EVALUATION_CHECKS: Checks = (check_reward_names, check_stop, check_held_out, check_text, check_inert)
"""Of evaluation: nothing that only an update or training problems would suffer from."""


def check_config(config: TrainConfig, checks: Checks = CHECKS) -> list[Mistake]:
    """All errors and warnings of a valid configuration, errors first."""
    mistakes = [mistake for check in checks for mistake in check(config)]
    return sorted(mistakes, key=lambda mistake: mistake.severity)


def check_model_context(config: TrainConfig, context_length: int) -> list[Mistake]:
    """Prompt and completion limit together must fit the model's context of `context_length` tokens."""
    if config.max_model_len <= context_length:
        return []
    completion = config.max_model_len - config.data.max_prompt_tokens
    longer = "evaluation" if completion > config.rollout.max_completion_tokens else "rollout"
    problem = (
        f"with data.max_prompt_tokens = {config.data.max_prompt_tokens} a sequence reaches {config.max_model_len} "
        f"tokens, over the context of {context_length} of {config.model.path}"
    )
    room = context_length - config.data.max_prompt_tokens
    remedy = f"lower it to at most {room}" if room > 0 else f"lower data.max_prompt_tokens below {context_length}"
    return [Mistake(f"{longer}.max_completion_tokens", completion, problem, f"{remedy}, or take another model")]
