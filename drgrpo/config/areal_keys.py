"""Keys of AReaL's configuration that have one counterpart here, with the conversion of their values.

AReaL as of 2026-08-22 (`areal/api/cli_args.py`). They serve as override keys and for converting a whole YAML.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Convert = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class ArealKey:
    """Where an AReaL value goes: our dotted paths, the conversion, and AReaL's default where ours differs."""

    paths: tuple[str, ...]
    convert: Convert = lambda value: value
    default: Any = None


def level(value: Any) -> Any:
    """AReaL's `null` level is our `none`."""
    return "none" if value is None or str(value).lower() in ("null", "none") else value


def negated(value: Any) -> Any:
    """The opposite of a boolean, also of one spelt as text."""
    return {"true": False, "false": True}.get(str(value).lower(), value)


def or_zero(value: Any) -> Any:
    """`null` switches off; ours switch off at 0."""
    return 0 if value is None else value


def top_k(value: Any) -> Any:
    """AReaL keeps all tokens with a huge k (1e8); ours is -1."""
    try:
        return -1 if value is None or float(value) >= 1e6 else value
    except (TypeError, ValueError):
        return value


def stop(value: Any) -> Any:
    """`null` is no stop string; a single one may stand alone."""
    return [] if value is None else [value] if isinstance(value, str) else value


def truncated_reward(value: Any) -> Any:
    """`mask_no_eos_with_zero` zeroes the reward of a truncated completion."""
    return {"true": "zero", "false": "keep"}.get(str(value).lower(), value)


def key(*paths: str, convert: Convert = lambda value: value, default: Any = None) -> ArealKey:
    return ArealKey(paths, convert, default)


AREAL_KEYS: dict[str, ArealKey] = {
    "seed": key("seed", default=1),
    "total_train_steps": key("total_steps"),
    "train_dataset.path": key("data.train"),
    "train_dataset.split": key("data.train_split"),
    "train_dataset.batch_size": key("data.prompts_per_step", default=1),
    "train_dataset.max_length": key("data.max_prompt_tokens"),
    "valid_dataset.path": key("data.eval"),
    "valid_dataset.split": key("data.eval_split"),
    "gconfig.n_samples": key("rollout.group_size", default=1),
    "gconfig.max_new_tokens": key("rollout.max_completion_tokens", default=16384),
    "gconfig.temperature": key("rollout.temperature"),
    "gconfig.top_p": key("rollout.top_p"),
    "gconfig.top_k": key("rollout.top_k", convert=top_k),
    "gconfig.stop": key("rollout.stop", convert=stop),
    "gconfig.ignore_eos": key("rollout.ignore_eos"),
    "eval_gconfig.n_samples": key("evaluation.samples_per_problem"),
    "eval_gconfig.max_new_tokens": key("evaluation.max_completion_tokens"),
    "vllm.gpu_memory_utilization": key("rollout.gpu_memory_utilization"),
    "vllm.max_num_seqs": key("rollout.max_num_seqs"),
    "vllm.enforce_eager": key("rollout.enforce_eager"),
    "vllm.no_enable_prefix_caching": key("rollout.prefix_caching", convert=negated),
    "vllm.enable_sleep_mode": key("placement.sleep"),
    "actor.path": key("model.path"),
    "actor.dtype": key("model.dtype"),
    "actor.gradient_checkpointing": key("trainer.gradient_checkpointing"),
    "actor.mb_spec.max_tokens_per_mb": key("trainer.tokens_per_microbatch"),
    "actor.logprobs_chunk_size": key("trainer.logprob_chunk_tokens"),
    "actor.offload": key("trainer.offload_optimizer"),
    "actor.optimizer.lr": key("optimizer.lr", default=1e-3),
    "actor.optimizer.weight_decay": key("optimizer.weight_decay", default=0.01),
    "actor.optimizer.beta1": key("optimizer.beta1"),
    "actor.optimizer.beta2": key("optimizer.beta2", default=0.999),
    "actor.optimizer.eps": key("optimizer.eps"),
    "actor.optimizer.gradient_clipping": key("optimizer.grad_clip"),
    "actor.optimizer.lr_scheduler_type": key("optimizer.schedule"),
    "actor.optimizer.warmup_steps": key("optimizer.warmup_steps"),
    "actor.optimizer.min_lr_ratio": key("optimizer.min_lr_ratio"),
    "actor.eps_clip": key("loss.clip_eps_low", "loss.clip_eps_high"),
    "actor.eps_clip_higher": key("loss.clip_eps_high"),
    "actor.kl_ctl": key("loss.kl_coef", default=0.1),
    "actor.kl_estimator": key("loss.kl_estimator"),
    "actor.reward_scaling": key("reward.scaling"),
    "actor.reward_bias": key("reward.bias"),
    "actor.reward_clip": key("reward.clip", default=20.0),
    "actor.mask_no_eos_with_zero": key("reward.truncated_reward", convert=truncated_reward, default=False),
    "actor.overlong_reward_penalty": key("reward.overlong.enabled"),
    "actor.overlong_tokens": key("reward.overlong.buffer_tokens"),
    "actor.overlong_penalty_factor": key("reward.overlong.penalty"),
    "actor.adv_norm.mean_level": key("adv_norm.mean_level", convert=level),
    "actor.adv_norm.std_level": key("adv_norm.std_level", convert=level),
    "actor.adv_norm.mean_leave1out": key("adv_norm.leave_one_out"),
    "actor.reward_norm.mean_level": key("adv_norm.mean_level", convert=level),
    "actor.reward_norm.std_level": key("adv_norm.std_level", convert=level),
    "actor.reward_norm.mean_leave1out": key("adv_norm.leave_one_out"),
    "evaluator.freq_steps": key("evaluation.every_steps", convert=or_zero),
    "saver.freq_steps": key("checkpoint.every_steps", convert=or_zero),
}
