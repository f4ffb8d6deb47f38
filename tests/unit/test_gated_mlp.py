"""The gated MLP that keeps less for the backward pass."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM

from drgrpo.trainer.gated_mlp import gated, gated_gradients, is_gated_mlp, keep_less
from tests.tiny_model import build_tiny_model


def test_the_product_and_its_gradients_are_those_of_autograd() -> None:
    torch.manual_seed(0)
    gate, up = (torch.randn(5, 7, dtype=torch.float64) * 3 for _ in range(2))
    grad = torch.randn(5, 7, dtype=torch.float64)
    inputs = (gate.clone().requires_grad_(), up.clone().requires_grad_())
    wanted = F.silu(inputs[0]) * inputs[1]
    wanted.backward(grad)
    small = [x.float() for x in (gate, up, grad)]
    torch.testing.assert_close(gated(*small[:2]).double(), wanted.detach(), atol=1e-6, rtol=1e-5)
    for found, exact in zip(gated_gradients(*small), (wanted.detach(), *(x.grad for x in inputs)), strict=True):
        torch.testing.assert_close(found.double(), exact, atol=1e-6, rtol=1e-5)
    # silu(1) = 1 / (1 + e^-1), its slope there silu(1) + sigmoid(1) (1 - silu(1))
    one = torch.ones(1)
    found = [x.item() for x in gated_gradients(one, 2 * one, 3 * one)]
    assert found == pytest.approx([1.462117, 5.566023, 2.193176], abs=1e-6)


def test_a_model_with_it_has_the_same_output_and_gradients_and_keeps_less(tmp_path: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(build_tiny_model(tmp_path), dtype=torch.float32).model
    other = copy.deepcopy(plain)
    for layer in other.layers:
        assert is_gated_mlp(layer.mlp)
        keep_less(layer.mlp)
    ids = torch.arange(3, 23)[None]
    kept = []
    for model in (plain, other):
        sizes: list[int] = []

        def pack(x: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(x.numel() if x.shape[-1] == plain.config.intermediate_size and x.shape[-2] == 20 else 0)
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            hidden = model(input_ids=ids, use_cache=False).last_hidden_state
        hidden.pow(2).sum().backward()
        kept.append((hidden.detach(), sum(sizes)))
    torch.testing.assert_close(kept[0][0], kept[1][0], atol=1e-6, rtol=1e-6)
    wide = 20 * plain.config.intermediate_size * plain.config.num_hidden_layers
    assert kept[1][1] == 2 * wide < kept[0][1]
    for (name, one), (_, two) in zip(plain.named_parameters(), other.named_parameters(), strict=True):
        assert one.grad is not None and two.grad is not None
        assert (one.grad - two.grad).norm() <= 1e-5 * one.grad.norm(), name
