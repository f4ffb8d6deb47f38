"""The decoder layer with fewer passes, against Hugging Face's own."""

import copy

import pytest
import torch
import transformers
from torch import Tensor, nn

from drgrpo.trainer import attention
from drgrpo.trainer.batch import pack
from drgrpo.trainer.decoder_layer import fuse_layers
from tests.tiny_model import VOCAB_SIZE
from tests.unit.test_batch import CPU, two_groups

WIDTH, WIDE = 48, 80
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": WIDTH,
    "intermediate_size": WIDE,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.1,
}
OPTIONS = {
    "Llama": {"attention_bias": True},
    "Mistral": {"sliding_window": None},
    "Qwen2": {},
    "Qwen3": {},
    "Gemma": {},
}


def build(name: str, **options: object) -> nn.Module:
    """A random decoder with grouped queries, whose norms and biases are not those it starts with."""
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **OPTIONS[name], **options})
    torch.manual_seed(0)
    model: nn.Module = transformers.AutoModel.from_config(config, attn_implementation=attention.NAME)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=0.5, std=0.3)
    return model.train()


def fused(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    fuse_layers(other.layers)
    return other


def run(model: nn.Module) -> tuple[Tensor, int]:
    """Hidden states [1, T, D] of a packed row, after a backward pass, and how many elements were kept for that."""
    batch, kept = pack(two_groups(), [[0, 1], [2]], device=CPU), {}
    parameters = {parameter.data_ptr() for parameter in model.parameters()}

    def keep(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in parameters:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes() // x.element_size()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        hidden: Tensor = model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=None,
            use_cache=False,
            packed_layout=batch.layout,
        ).last_hidden_state
    hidden.pow(2).sum().backward()
    return hidden.detach(), sum(kept.values())


def assert_same_gradients(one: nn.Module, other: nn.Module) -> None:
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert a.grad is not None and b.grad is not None, name
        assert (a.grad - b.grad).norm() <= 1e-5 * a.grad.norm(), name


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_hidden_states_and_gradients_are_hugging_faces_and_less_is_kept(name: str) -> None:
    plain = build(name)
    other = fused(plain)
    assert all("forward" in vars(layer) for layer in other.layers)
    (wanted, more), (found, less) = run(plain), run(other)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    assert_same_gradients(plain, other)
    # At least what both norms gave and the product in the MLP, of each token in each layer.
    tokens, layers = found.shape[1], len(other.layers)
    assert less <= more - tokens * layers * (2 * WIDTH + WIDE)


@pytest.mark.parametrize("name", ["Llama", "Qwen3"])
def test_recomputed_gradients_are_the_same(name: str) -> None:
    kept = fused(build(name))
    recomputed = copy.deepcopy(kept)
    recomputed.gradient_checkpointing_enable({"use_reentrant": False})
    (wanted, more), (found, less) = run(kept), run(recomputed)
    assert torch.equal(found, wanted) and less < more / 2
    assert_same_gradients(kept, recomputed)


def test_each_parameter_has_its_gradient_in_one_piece() -> None:
    model, seen = fused(build("Qwen3")), []
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: seen.append(name))
    run(model)
    assert sorted(seen) == sorted(name for name, _ in model.named_parameters())


def test_a_kernel_in_place_of_the_rotation_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fused(build("Qwen2"))
    module, calls = transformers.models.qwen2.modeling_qwen2, []
    plain = module.apply_rotary_pos_emb
    monkeypatch.setattr(module, "apply_rotary_pos_emb", lambda *args: calls.append(1) or plain(*args))
    run(model)
    assert len(calls) == len(model.layers)


def test_a_derived_layer_and_one_that_drops_attention_keep_their_forward_pass_but_for_the_mlp() -> None:
    derived = build("Llama")
    for layer in derived.layers:
        layer.__class__ = type("LlamaDecoderLayer", (type(layer),), {})
    for plain in (derived, build("Llama", attention_dropout=0.5)):
        other = fused(plain)
        assert all("forward" not in vars(layer) and "forward" in vars(layer.mlp) for layer in other.layers)
    other = fused(derived)
    (wanted, _), (found, _) = run(derived), run(other)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    assert_same_gradients(derived, other)


@pytest.mark.parametrize(
    ("name", "options"), [("Llama", {"mlp_bias": True}), ("Llama", {"hidden_act": "gelu"}), ("Gemma", {})]
)
def test_a_layer_with_another_mlp_is_left_alone(name: str, options: dict[str, object]) -> None:
    for layer in fused(build(name, **options)).layers:
        assert "forward" not in vars(layer) and "forward" not in vars(layer.mlp)
