"""What a model's `config.json` says: its context, and parts that attention and output head here do not compute."""

from collections.abc import Mapping
from typing import Any

FUSED_LAYERS = ("Llama", "Mistral", "Qwen2", "Qwen3")
"""Architectures for whose decoder layers the trainer has a forward pass of its own, on a GPU in 16 bits."""

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


def context_length(config: Mapping[str, Any]) -> int | None:
    """Longest sequence in tokens that a model with this `config.json` was made for; None where it does not say."""
    text_config = config.get("text_config")
    for section in (config, text_config if isinstance(text_config, dict) else {}):
        for key in _CONTEXT_KEYS:
            if isinstance(section.get(key), int):
                return int(section[key])
    return None


def unsupported_parts(config: Mapping[str, Any]) -> list[str]:
    """Reasons why a model with this `config.json` would be trained wrongly; empty if it is supported."""
    reasons = []
    if config.get("final_logit_softcapping") or config.get("logit_scale") or config.get("logits_scaling"):
        reasons.append("its output logits are capped or scaled")
    if config.get("attn_logit_softcapping"):
        reasons.append("its attention logits are capped")
    if _slides(config):
        reasons.append("it attends within a sliding window")
    if config.get("model_type") == "gpt_oss":
        reasons.append("its attention has sinks")
    return reasons


def _slides(config: Mapping[str, Any]) -> bool:
    layer_types = config.get("layer_types")
    if isinstance(layer_types, list) and layer_types:
        return any(kind != "full_attention" for kind in layer_types)
    return bool(config.get("sliding_window")) and bool(config.get("use_sliding_window", True))
