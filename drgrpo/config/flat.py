"""A configuration as flat values: for MLflow parameters, for a digest, for the difference of two runs."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from drgrpo.config.train import TrainConfig

Scalar = bool | int | float | str

# What fits a run to its machine, or watches it. The mathematics stays; sums may be taken in another order.
_NOT_OF_THE_RECIPE = ("checkpoint.", "health.", "placement.")
_FITTING = {
    *(f"trainer.{name}" for name in ("num_ranks", "tokens_per_microbatch", "logprob_chunk_tokens", "share_prompts")),
    *(f"trainer.{name}" for name in ("gradient_checkpointing", "offload_optimizer", "deterministic")),
    *(
        f"rollout.{name}"
        for name in ("max_num_seqs", "gpu_memory_utilization", "kv_cache_gib", "enforce_eager", "prefix_caching")
    ),
    *("reward.num_workers", "reward.max_failed_share", "evaluation.num_shown", "trainer.max_skipped_updates"),
}


def flatten(config: TrainConfig) -> dict[str, Scalar]:
    """Dotted path to value; lists become JSON text, each key of a mapping a path of its own."""
    return _flattened(config.model_dump(), "")


def _flattened(tree: Mapping[str, Any], prefix: str) -> dict[str, Scalar]:
    flat: dict[str, Scalar] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flattened(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
    return flat


def config_digest(config: TrainConfig) -> str:
    """SHA-256 (hex) of the canonical JSON: sorted keys, no spaces."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def config_difference(old: TrainConfig, new: TrainConfig) -> dict[str, tuple[Scalar | None, Scalar | None]]:
    """Dotted path to (old, new) where the two differ; None where one of them lacks the path."""
    before, after = flatten(old), flatten(new)
    paths = [*before, *(path for path in after if path not in before)]
    return {path: (before.get(path), after.get(path)) for path in paths if before.get(path) != after.get(path)}


def recipe_difference(old: TrainConfig, new: TrainConfig) -> dict[str, tuple[Scalar | None, Scalar | None]]:
    """`config_difference` of the fields that change a run's numbers, beyond the order of a floating-point sum.

    A run with a constant learning rate may be made longer or shorter: its steps so far stay what they are.
    """
    difference = config_difference(old, new)
    if old.optimizer.schedule == new.optimizer.schedule == "constant":
        difference.pop("total_steps", None)
    return {path: change for path, change in difference.items() if _is_of_the_recipe(path)}


def recipe_digest(config: TrainConfig) -> str:
    """SHA-256 (hex) of the fields that change a run's numbers: what a checkpoint must have in common with its run."""
    flat = {path: value for path, value in flatten(config).items() if _is_of_the_recipe(path)}
    if config.optimizer.schedule == "constant":
        flat.pop("total_steps")
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()


def _is_of_the_recipe(path: str) -> bool:
    return path not in _FITTING and not path.startswith(_NOT_OF_THE_RECIPE)
