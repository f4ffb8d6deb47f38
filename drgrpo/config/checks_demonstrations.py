"""Checks of supervised training: what has no part in the likelihood of given completions must be off."""

from typing import Any

from drgrpo.config.errors import Mistake
from drgrpo.config.flat import flatten
from drgrpo.config.train import TrainConfig

# (path, the one value that is right, why)
_FIXED: tuple[tuple[str, Any, str], ...] = (
    ("rollout.group_size", 1, "each prompt has one demonstration"),
    ("adv_norm.mean_level", "none", "the advantage of a demonstration is 1, and no mean is subtracted"),
    ("adv_norm.std_level", "none", "the advantage of a demonstration is 1, and nothing divides it"),
    ("loss.kl_coef", 0.0, "the likelihood has no KL term"),
    ("loss.entropy_coef", 0.0, "the likelihood has no entropy term"),
    ("loss.correction", "off", "demonstrations come from no sampler that could be corrected for"),
)


def check_demonstrations(config: TrainConfig) -> list[Mistake]:
    """One demonstration a prompt, nothing but its likelihood, one optimizer step for each iteration."""
    values = flatten(config)
    mistakes = [
        Mistake(path, values[path], reason, f"supervised training needs {right!r}")
        for path, right, reason in _FIXED
        if values[path] != right
    ]
    prompts, update = config.data.prompts_per_step, config.trainer.completions_per_update
    if update != prompts:
        problem = f"an iteration of {prompts} demonstrations (data.prompts_per_step) is one optimizer step"
        also = ("data.prompts_per_step",)
        mistakes.append(Mistake("trainer.completions_per_update", update, problem, f"set it to {prompts}", also=also))
    if config.rollout.temperature != 1:
        problem = "the likelihood is that of the policy at this temperature"
        remedy = "set it to 1, unless the policy is to be sampled so later"
        mistakes.append(Mistake("rollout.temperature", config.rollout.temperature, problem, remedy, "warning"))
    return mistakes
