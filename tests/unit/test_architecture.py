"""Models that the trainer would compute wrongly are refused by their configuration."""

import pytest

from drgrpo.architecture import unsupported_parts


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama"},
        {"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False},
        {"model_type": "qwen3", "layer_types": ["full_attention", "full_attention"], "sliding_window": None},
    ],
)
def test_plain_causal_models_are_supported(config):
    assert unsupported_parts(config) == []


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "gemma2", "final_logit_softcapping": 30.0}, "output logits"),
        ({"model_type": "gemma2", "attn_logit_softcapping": 50.0}, "attention logits"),
        ({"model_type": "cohere", "logit_scale": 0.0625}, "output logits"),
        ({"model_type": "mistral", "sliding_window": 4096}, "sliding window"),
        ({"model_type": "gemma3", "layer_types": ["sliding_attention", "full_attention"]}, "sliding window"),
        ({"model_type": "gpt_oss", "layer_types": ["full_attention"]}, "sinks"),
    ],
)
def test_what_is_not_computed_is_named(config, reason):
    (only,) = unsupported_parts(config)
    assert reason in only
