"""The gated MLP of a decoder layer, down(silu(gate(x)) * up(x)), with less kept for the backward pass.

Of its three wide activations the product is made again in the backward pass, by the kernel that reads the other two
there anyway. That is a quarter of what a layer keeps, for which other layers need not recompute.
"""

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drgrpo.trainer.compiled import compiled


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, rounded once."""
    return (F.silu(gate.float()) * up.float()).to(gate.dtype)


def gated_gradients(gate: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The product silu(gate) * up again, and the gradients of `gate` and `up` for the product's gradient `grad`."""
    wide_gate, wide_up, wide_grad = gate.float(), up.float(), grad.float()
    sigmoid = torch.sigmoid(wide_gate)
    silu = wide_gate * sigmoid
    slope = sigmoid * (1 + wide_gate * (1 - sigmoid))
    product, grad_gate, grad_up = silu * wide_up, wide_grad * wide_up * slope, wide_grad * silu
    return product.to(gate.dtype), grad_gate.to(gate.dtype), grad_up.to(gate.dtype)


def gated_mlp_gradients(
    rows: Tensor, gate: Tensor, up: Tensor, weights: tuple[Tensor, Tensor, Tensor], grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the input [T, D] and of the weights of gate, up [I, D] and down [D, I], for `grad` [T, D].

    `rows` [T, D] is the input; `gate` and `up` [T, I] are what the first two made of it.
    """
    gate_weight, up_weight, down_weight = weights
    product, grad_gate, grad_up = compiled(gated_gradients, rows.device)(gate, up, grad @ down_weight)
    grad_down_weight = grad.t() @ product
    del product  # before more is made
    # The second product adds itself to the first, which is rounded once less than a sum of both.
    grad_rows = (grad_gate @ gate_weight).addmm_(grad_up, up_weight)
    return grad_rows, grad_gate.t() @ rows, grad_up.t() @ rows, grad_down_weight


class _GatedMlp(torch.autograd.Function):
    """(x [..., D], gate and up weights [I, D], down weight [D, I]) -> [..., D]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_weight: Tensor, up_weight: Tensor, down_weight: Tensor) -> Tensor:
        gate, up = x @ gate_weight.t(), x @ up_weight.t()
        ctx.save_for_backward(x, gate, up, gate_weight, up_weight, down_weight)
        product: Tensor = compiled(gated, x.device)(gate, up)
        return product @ down_weight.t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        x, gate, up, *weights = ctx.saved_tensors
        rows, gate, up, grad = (tensor.flatten(0, -2) for tensor in (x, gate, up, grads[0]))
        grad_rows, *grad_weights = gated_mlp_gradients(rows, gate, up, tuple(weights), grad)
        return grad_rows.view_as(x), *grad_weights


def _forward(self: Any, x: Tensor) -> Tensor:
    found: Tensor = _GatedMlp.apply(x, self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)
    return found


def is_gated_mlp(mlp: Any) -> bool:
    """Whether a module of a Hugging Face layer is an MLP of this kind, without biases."""
    parts = [getattr(mlp, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    is_silu = getattr(getattr(mlp, "config", None), "hidden_act", None) in ("silu", "swish")
    return is_silu and all(isinstance(part, nn.Linear) and part.bias is None for part in parts)


def keep_less(mlp: nn.Module) -> None:
    """Give an MLP of this kind this forward pass.

    It reads weights without calling the modules that own them, so ZeRO-3 has to gather a layer as a whole.
    """
    mlp.forward = MethodType(_forward, mlp)
