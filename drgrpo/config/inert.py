"""Settings that were changed and do nothing, because another setting switches them off."""

from collections.abc import Callable

from drgrpo.config.errors import Mistake
from drgrpo.config.flat import flatten
from drgrpo.config.train import TrainConfig
from drgrpo.data.generated import PREFIX

# (path, what must hold for the setting to act, in words; the same as a test)
INERT: tuple[tuple[str, str, Callable[[TrainConfig], bool]], ...] = (
    ("data.system_prompt", "data.prompt_style is chat", lambda c: c.data.prompt_style == "chat"),
    ("rollout.forced_lengths", "rollout.ignore_eos is true", lambda c: c.rollout.ignore_eos),
    ("loss.clip_eps_low", "an iteration has two optimizer steps or more", lambda c: c.updates_per_step > 1),
    ("loss.clip_eps_high", "an iteration has two optimizer steps or more", lambda c: c.updates_per_step > 1),
    ("loss.correction_cap", "loss.correction is not off", lambda c: c.loss.correction != "off"),
    ("loss.kl_estimator", "loss.kl_coef is above 0", lambda c: c.loss.kl_coef > 0),
    ("optimizer.min_lr_ratio", "optimizer.schedule decays", lambda c: c.optimizer.schedule != "constant"),
    ("reward.overlong.buffer_tokens", "reward.overlong.enabled is true", lambda c: c.reward.overlong.enabled),
    ("reward.overlong.penalty", "reward.overlong.enabled is true", lambda c: c.reward.overlong.enabled),
    ("reward.answer_mode", "reward.functions holds more than math", lambda c: set(c.reward.functions) != {"math"}),
    ("checkpoint.keep_last", "checkpoints are taken, by steps or minutes", lambda c: c.checkpoint.has_cadence),
)


def check_inert(config: TrainConfig) -> list[Mistake]:
    """A warning for each setting that differs from its default and has no effect."""
    values, defaults = flatten(config), flatten(TrainConfig())
    mistakes = [
        Mistake(path, values[path], f"has no effect unless {condition}", "change that, or drop this setting", "warning")
        for path, condition, acts in INERT
        if values[path] != defaults[path] and not acts(config)
    ]
    return [*mistakes, *check_idle_weights(config), *check_generator_options(config)]


def check_unread_demonstrations(config: TrainConfig) -> list[Mistake]:
    """Columns of demonstrations mean nothing to reinforcement learning."""
    given = {
        "data.completion_field": config.data.completion_field,
        "data.strip_annotations": config.data.strip_annotations,
    }
    problem, remedy = "has no effect outside drgrpo-sft", "drop this setting"
    return [Mistake(path, value, problem, remedy, "warning") for path, value in given.items() if value]


def check_idle_weights(config: TrainConfig) -> list[Mistake]:
    """A reward function of weight 0 is computed and recorded, and never trained on."""
    functions = config.reward.functions
    idle = [name for name, weight in functions.items() if weight == 0]
    if len(idle) == len(functions):
        return []
    problem, remedy = "recorded, but no part of the reward", "give a weight, unless it is only to be watched"
    return [Mistake(f"reward.functions.{name}", 0.0, problem, remedy, "warning") for name in idle]


def check_generator_options(config: TrainConfig) -> list[Mistake]:
    """Generator options belong to reasoning_gym sources."""
    data = config.data
    if not data.generator_options or any(s.startswith(PREFIX) for s in (data.train, data.eval)):
        return []
    problem, remedy = "has no effect unless a source is reasoning_gym:<name>", "drop it, or change the source"
    return [Mistake("data.generator_options", data.generator_options, problem, remedy, "warning")]
