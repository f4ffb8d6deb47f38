"""The gated MLP of a decoder layer, down(silu(gate(x)) * up(x)), with less kept for the backward pass.

Of its three wide activations the product is made again in the backward pass, by the kernel that reads the other two
there anyway. That is a quarter of what a layer keeps, for which other layers need not recompute.
"""

from collections.abc import Iterable
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


class _GatedDown(torch.autograd.Function):
    """(gate, up [..., I], weight [D, I]) -> (silu(gate) * up) @ weight.T [..., D]."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        product: Tensor = compiled(gated, gate.device)(gate, up)
        return product @ weight.t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (grad,) = grads
        gate, up, weight = ctx.saved_tensors
        product, grad_gate, grad_up = compiled(gated_gradients, gate.device)(gate, up, grad @ weight)
        return grad_gate, grad_up, grad.flatten(0, -2).t() @ product.flatten(0, -2)


def _forward(self: Any, x: Tensor) -> Tensor:
    found: Tensor = _GatedDown.apply(self.gate_proj(x), self.up_proj(x), self.down_proj.weight)
    return found


def keep_less(layers: Iterable[nn.Module]) -> None:
    """Give layers whose MLP is of this kind, without a bias after the product, this forward pass.

    It reads a weight without calling the module that owns it, so ZeRO-3 has to gather a layer as a whole.
    """
    for layer in layers:
        mlp: Any = getattr(layer, "mlp", None)
        parts = [getattr(mlp, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
        if all(isinstance(part, nn.Linear) for part in parts) and _is_silu(mlp) and mlp.down_proj.bias is None:
            mlp.forward = MethodType(_forward, mlp)


def _is_silu(mlp: Any) -> bool:
    return getattr(getattr(mlp, "config", None), "hidden_act", None) in ("silu", "swish")
