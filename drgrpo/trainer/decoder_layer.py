"""A decoder layer of Llama's kind with fewer passes over its hidden states, and with less kept for the backward pass.

Additions and norms are one kernel in each direction, gradients of the projections add up in the products that make
them, and what a norm gave is made again. Attention is called as Hugging Face's layer calls it.
"""

import sys
from collections.abc import Iterable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from drgrpo.architecture import FUSED_LAYERS
from drgrpo.trainer.compiled import compiled
from drgrpo.trainer.gated_mlp import gated, gated_mlp_gradients, is_gated_mlp, keep_less
from drgrpo.trainer.rms_norm import norm_functions

# The classes whose forward pass has been compared with the one here; a class derived from them may do otherwise.
_COMPARED = {
    (f"transformers.models.{name.lower()}.modeling_{name.lower()}", f"{name}DecoderLayer") for name in FUSED_LAYERS
}


def _projected(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return rows @ weight.t() if bias is None else torch.addmm(bias, rows, weight.t())


class _NormedProjections(torch.autograd.Function):
    """(x [..., D], norm weight [D], eps, q/k/v weights [E, D], q/k/v biases [E] or None) -> (x, q, k, v [T, E]).

    `x` comes out again for the residual addition, so that its gradient from there joins the norm's in one kernel.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm_weight: Tensor, eps: float, *linears: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        weights: Any = linears[:3]
        _, normed, rstd = norm_functions(x.device).add_norm(x.flatten(0, -2), None, norm_weight, eps)
        ctx.save_for_backward(x, rstd, norm_weight, *weights)
        q, k, v = (_projected(normed, *linear) for linear in zip(weights, linears[3:], strict=True))
        return x, q, k, v

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, rstd, norm_weight, *weights = ctx.saved_tensors
        rows, grad_x, grad_outs = x.flatten(0, -2), grads[0].flatten(0, -2), grads[1:]
        functions = norm_functions(x.device)
        normed = functions.normed_again(rows, rstd, norm_weight)
        grad_weights = [grad.t() @ normed for grad in grad_outs]
        del normed  # before more is made
        # Each further product adds itself to those before it, which spares a pass over them and a rounding.
        grad_normed = grad_outs[0] @ weights[0]
        for grad, weight in zip(grad_outs[1:], weights[1:], strict=True):
            grad_normed.addmm_(grad, weight)
        grad_rows, grad_norm_weight = functions.norm_gradient(grad_normed, rows, rstd, norm_weight, grad_x)
        has_bias = ctx.needs_input_grad[6:]
        grad_biases = (grad.sum(0) if needed else None for grad, needed in zip(grad_outs, has_bias, strict=True))
        return grad_rows.view_as(x), grad_norm_weight, None, *grad_weights, *grad_biases


class _NormedMlp(torch.autograd.Function):
    """(residual, attention's output [..., D], norm weight [D], eps, gate, up, down weights) -> the layer's output.

    That is total + mlp(norm(total)) with total = residual + attention's output.
    """

    @staticmethod
    def forward(
        ctx: Any, residual: Tensor, attended: Tensor, norm_weight: Tensor, eps: float, *weights: Tensor
    ) -> Tensor:
        gate_weight, up_weight, down_weight = weights
        total, normed, rstd = norm_functions(residual.device).add_norm(
            attended.flatten(0, -2), residual.flatten(0, -2), norm_weight, eps
        )
        gate, up = normed @ gate_weight.t(), normed @ up_weight.t()
        del normed  # before more is made
        ctx.save_for_backward(total, rstd, gate, up, norm_weight, *weights)
        product = compiled(gated, total.device)(gate, up)
        return torch.addmm(total, product, down_weight.t()).view_as(residual)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        total, rstd, gate, up, norm_weight, *weights = ctx.saved_tensors
        grad = grads[0].flatten(0, -2)
        functions = norm_functions(total.device)
        normed = functions.normed_again(total, rstd, norm_weight)
        grad_normed, *grad_weights = gated_mlp_gradients(normed, gate, up, tuple(weights), grad)
        del normed
        grad_total, grad_norm_weight = functions.norm_gradient(grad_normed, total, rstd, norm_weight, grad)
        grad_total = grad_total.view_as(grads[0])
        return grad_total, grad_total, grad_norm_weight, None, *grad_weights


def _attended(attention: Any, projected: Iterable[Tensor], shape: torch.Size, options: dict[str, Any]) -> Tensor:
    """Output [..., D] of `attention`, a module of a Hugging Face layer, for its projected queries, keys and values."""
    heads = (*shape[:-1], -1, attention.head_dim)
    q, k, v = (x.view(heads) for x in projected)
    if hasattr(attention, "q_norm"):
        q, k = attention.q_norm(q), attention.k_norm(k)
    # Looked up with every call, so that a kernel that takes its place in the module is found.
    rotated = sys.modules[type(attention).__module__].apply_rotary_pos_emb
    q, k = rotated(q.transpose(1, 2), k.transpose(1, 2), *options.pop("position_embeddings"))
    interface = ALL_ATTENTION_FUNCTIONS[attention.config._attn_implementation]
    out, _ = interface(attention, q, k, v.transpose(1, 2), dropout=0.0, scaling=attention.scaling, **options)
    attended: Tensor = attention.o_proj(out.reshape(*shape[:-1], -1))
    return attended


def _forward(self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Tensor:
    attention, mlp, norm, norm_after = self.self_attn, self.mlp, self.input_layernorm, self.post_attention_layernorm
    linears = (attention.q_proj, attention.k_proj, attention.v_proj)
    residual, *projected = _NormedProjections.apply(
        hidden_states,
        norm.weight,
        norm.variance_epsilon,
        *(linear.weight for linear in linears),
        *(linear.bias for linear in linears),
    )
    attended = _attended(attention, projected, hidden_states.shape, {"attention_mask": attention_mask, **options})
    weights = (mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight)
    out: Tensor = _NormedMlp.apply(residual, attended, norm_after.weight, norm_after.variance_epsilon, *weights)
    return out


def fuse_layers(layers: Iterable[nn.Module]) -> None:
    """Give layers of a compared class this forward pass, and the MLP of others, where it is gated, the one that fits.

    It keeps no cache of keys and values, and reads weights without calling the modules that own them, so ZeRO-3 has to
    gather a layer as a whole. A sliding window is the attention function's matter.
    """
    for layer in layers:
        parts: Any = layer
        if not is_gated_mlp(getattr(parts, "mlp", None)):
            continue
        is_compared = (type(layer).__module__, type(layer).__qualname__) in _COMPARED
        if is_compared and not parts.self_attn.attention_dropout:
            parts.forward = MethodType(_forward, layer)
        else:
            keep_less(parts.mlp)
