"""Settings that follow from several keys of an AReaL configuration, or from one with another unit.

Every function takes the flat AReaL mapping (dotted key to value) and returns our dotted overrides, the keys it used
and its notes.
"""

import contextlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from drgrpo.config.areal_keys import level
from drgrpo.config.areal_notes import Note
from drgrpo.config.errors import ConfigError, Mistake

KNOWN_SIZES = {"openai/gsm8k": 7473}
BOXED_TEMPLATE = "{question}\nPlease put your final answer within \\boxed{}."
CORRECTIONS = {
    ("token", "mask"): "token_mask",
    ("token", "clamp"): "token_tis",
    ("sequence", "mask"): "sequence_mask",
    ("sequence", "clamp"): "sequence_tis",
}


class Derived(NamedTuple):
    """Our overrides, the AReaL keys they come from, and notes."""

    overrides: dict[str, Any]
    used: set[str]
    notes: list[Note]


Flat = Mapping[str, Any]


def number(flat: Flat, key: str, default: float) -> float:
    """A number of the file; PyYAML reads 1e-8 as text. Raises `ConfigError` for anything else, and beyond 1e12."""
    given = flat.get(key)
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        value = default if given is None else float(given)
        if abs(value) <= 1e12:
            return value
    raise ConfigError([Mistake(key, given, "not a number", "give a number of at most 1e12")])


def count(flat: Flat, key: str, default: int) -> int:
    """A number of things, at least 1. Raises `ConfigError` for anything else."""
    value = number(flat, key, default)
    if not (value >= 1 and value == int(value)):
        raise ConfigError([Mistake(key, flat.get(key), "not a count", "give an integer, at least 1")])
    return int(value)


def advantages(flat: Flat, _: int) -> Derived:
    """`reward_norm` acts on sequences as ours does; `adv_norm` acts on tokens after it and counts only when alone."""
    section = "actor.reward_norm" if any(key.startswith("actor.reward_norm.") for key in flat) else "actor.adv_norm"
    if not any(key.startswith(f"{section}.") for key in flat):
        return Derived({"adv_norm.mean_level": "none", "adv_norm.std_level": "none"}, set(), [])
    mean, std = (level(flat.get(f"{section}.{name}_level", "batch")) for name in ("mean", "std"))
    leave_one_out = flat.get(f"{section}.mean_leave1out", False)
    found = {"adv_norm.mean_level": mean, "adv_norm.std_level": std, "adv_norm.leave_one_out": leave_one_out}
    used = {f"{section}.{name}" for name in ("mean_level", "std_level", "mean_leave1out", "std_unbiased")}
    notes = []
    if section == "actor.adv_norm":
        reason = "statistics over the rewards of sequences; AReaL's are over tokens, so that long answers weigh more"
        notes.append(Note(f"{section}.mean_level", reason, carried=True))
    if flat.get(f"{section}.std_unbiased") is False:
        notes.append(Note(f"{section}.std_unbiased", "the standard deviation is the unbiased one (n - 1)"))
    return Derived({**found, **aggregation(mean, std, notes)}, used, notes)


def aggregation(mean: Any, std: Any, notes: list[Note]) -> dict[str, Any]:
    """AReaL always divides by the batch's tokens; Dr. GRPO by a constant, which its levels ask for."""
    if (mean, std) == ("group", "none"):
        reason = "constant (Dr. GRPO), as the levels ask for; AReaL divides by tokens (loss.aggregation: token_mean)"
        notes.append(Note("loss aggregation", reason, carried=True))
        return {"loss.aggregation": "constant"}
    return {"loss.aggregation": "token_mean"}


def correction(flat: Flat, _: int) -> Derived:
    """The decoupled loss with rejection sampling is a correction of the sampler's mismatch."""
    section, old_cap = "actor.rejection_sampling", "actor.behav_imp_weight_cap"
    keys = {key for key in flat if key.startswith(f"{section}.")} | ({old_cap} & set(flat))
    active = bool(flat.get("actor.use_decoupled_loss"))
    if not keys or not active:
        notes = [Note(section, "acts only with use_decoupled_loss")] if keys else []
        return Derived({}, keys, notes)
    metric, lower = flat.get(f"{section}.metric", "ratio"), flat.get(f"{section}.lower")
    names = (flat.get(f"{section}.level", "token"), flat.get(f"{section}.action", "mask"))
    if metric != "ratio" or lower is not None or names not in CORRECTIONS:
        return Derived(
            {}, keys, [Note(f"{section}.*", "corrections cap the ratio from above; no other metric or bound")]
        )
    cap = number(flat, f"{section}.upper", number(flat, old_cap, 5.0))
    found = {"loss.correction": CORRECTIONS[names], "loss.correction_cap": cap, "rollout.sampler_logprobs": True}
    notes = []
    if names[1] == "mask":
        notes.append(
            Note(f"{section}.action", "drops ratios below 1/cap too, in AReaL those above alone", carried=True)
        )
    if names[0] == "sequence":
        reason = "the ratio of a sequence is the product over its tokens, in AReaL the geometric mean: set the cap anew"
        notes.append(Note(f"{section}.upper", reason, carried=True))
    return Derived(found, keys | {"actor.use_decoupled_loss"}, notes)


def devices(flat: Flat, __: int) -> Derived:
    """`backend` or the older `allocation_mode`, such as `sglang:d4p1t1+fsdp:d4p1t1`."""
    mode = str(flat.get("allocation_mode") or "")
    first, _, second = mode.replace("|", "+").partition("+")
    sampler, trainer = str(flat.get("rollout.backend") or first), str(flat.get("actor.backend") or second)
    used = {"rollout.backend", "actor.backend", "allocation_mode", "rollout.scheduling_strategy.type"}
    if not sampler or not trainer:
        return Derived({}, used if mode else set(), [Note("allocation_mode", "not understood")] if mode else [])
    engines, ranks = dimensions(sampler).get("d", 1), product(dimensions(trainer))
    notes = []
    if is_split(sampler):
        notes.append(Note("rollout.backend", f"`{sampler}`: a vLLM engine has one device, without tensor parallelism"))
    if engines > ranks:
        reason = f"at most one vLLM engine for each of {ranks} ranks: engines and ranks share devices"
        notes.append(Note("rollout.backend", reason, carried=True))
    if is_split(trainer):
        reason = "ZeRO-3 shards over all devices; there is no other parallelism"
        notes.append(Note("actor.backend", reason, carried=True))
    found = {"placement.num_rollout_engines": min(engines, ranks), "trainer.num_ranks": ranks}
    return Derived(found, used, notes)


def is_split(backend: str) -> bool:
    """Whether a model lies on several devices otherwise than by data parallelism."""
    return any(size > 1 for name, size in dimensions(backend).items() if name != "d")


def dimensions(backend: str) -> dict[str, int]:
    """`fsdp:d4p1t2` as {"d": 4, "p": 1, "t": 2}."""
    last = backend.split(":")[-1].split(".")[-1]
    return {name: int(size) for name, size in re.findall(r"([a-z])(\d{1,6})(?!\d)", last)}


def product(sizes: Mapping[str, int]) -> int:
    """Devices of one engine; expert parallelism reuses the others'."""
    total = 1
    for name, size in sizes.items():
        total *= 1 if name == "e" else size
    return total


def minibatches(flat: Flat, _: int) -> Derived:
    """A number of minibatches as completions of one optimizer step."""
    step = count(flat, "train_dataset.batch_size", 1) * count(flat, "gconfig.n_samples", 1)
    parts = count(flat, "actor.ppo_n_minibatches", 4)
    used = {"actor.ppo_n_minibatches"}
    if step % parts:
        return Derived({}, used, [Note("actor.ppo_n_minibatches", f"{step} completions do not split into {parts}")])
    return Derived({"trainer.completions_per_update": step // parts}, used, [])


def cadence(flat: Flat, num_problems: int) -> Derived:
    """Epochs, and shares of the run, as steps; they need the number of training problems."""
    epochs = {
        "total_steps": "total_train_epochs",
        "evaluation.every_steps": "evaluator.freq_epochs",
        "checkpoint.every_steps": "saver.freq_epochs",
    }
    by_steps = {key: key.replace("epochs", "steps") for key in epochs.values()}
    per_epoch = num_problems // count(flat, "train_dataset.batch_size", 1)
    result = Derived({}, set(epochs.values()), [])
    for ours, key in epochs.items():
        num_epochs = number(flat, key, 1 if key == "total_train_epochs" else 0)
        if not num_epochs or flat.get(by_steps[key]) is not None:
            continue
        if per_epoch:
            result.overrides[ours] = int(num_epochs * per_epoch)
        else:
            result.notes.append(Note(key, f"give --num-train-problems to turn epochs into {ours}"))
    return result


def warmup(flat: Flat, num_problems: int) -> Derived:
    """A share of the run as optimizer steps."""
    key = "actor.optimizer.warmup_steps_proportion"
    if flat.get("actor.optimizer.warmup_steps") is not None:
        return Derived({}, {key}, [])
    default = cadence(flat, num_problems).overrides.get("total_steps", 0)
    steps = number(flat, "total_train_steps", default) * number(flat, "actor.ppo_n_minibatches", 4)
    return Derived({"optimizer.warmup_steps": int(number(flat, key, 0.001) * steps)}, {key}, [])


def prompt(flat: Flat, _: int) -> Derived:
    """AReaL's GSM8K loader writes the instruction itself."""
    if "gsm8k" not in str(flat.get("train_dataset.path", "")).lower():
        return Derived({}, set(), [])
    reason = "the instruction of AReaL's GSM8K loader becomes data.prompt_template; answers are graded by `gsm8k`"
    return Derived({"data.prompt_template": BOXED_TEMPLATE}, set(), [Note("prompt", reason, carried=True)])


DERIVED: tuple[Callable[[Flat, int], Derived], ...] = (
    advantages,
    correction,
    devices,
    minibatches,
    cadence,
    warmup,
    prompt,
)
