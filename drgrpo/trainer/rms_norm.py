"""RMSNorm with the residual addition before it and the sum of gradients after it, as functions without autograd.

Here in plain torch. On a GPU kernels of our own do the same, reading each tensor once.
"""

import importlib
import sys
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


@lru_cache(maxsize=8)
def norm_functions(device: torch.device) -> Any:
    """The module whose functions of these names serve this device; Triton is there with a GPU only."""
    if device.type == "cuda":
        return importlib.import_module("drgrpo.trainer.norm_kernels")
    return sys.modules[__name__]


def add_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x + residual [R, D] (`x` itself without one), the norm of that [R, D], and what it was scaled by, [R] float32."""
    total = x if residual is None else x + residual
    rstd = torch.rsqrt(total.float().pow(2).mean(-1) + eps)
    return total, normed_again(total, rstd, weight), rstd


def normed_again(total: Tensor, rstd: Tensor, weight: Tensor) -> Tensor:
    """The normed tensor of `add_norm` [R, D], made of what else it gave, so that it need not be kept."""
    return weight * (total.float() * rstd[:, None]).to(total.dtype)


def norm_gradient(
    grad_normed: Tensor, total: Tensor, rstd: Tensor, weight: Tensor, grad_total: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of `add_norm`'s total [R, D] and of its weight [D] for those of its normed and of its total [R, D].

    With u = total * rstd and g = grad_normed * weight, that of the total is rstd * (g - u * mean(g * u)) + grad_total.
    """
    outer, unit = grad_normed.float(), total.float() * rstd[:, None]
    inner = outer * weight.float()
    grad = rstd[:, None] * (inner - unit * (inner * unit).mean(-1, keepdim=True))
    if grad_total is not None:
        grad += grad_total.float()
    grad_weight = (outer * unit.to(total.dtype).float()).sum(0)
    return grad.to(total.dtype), grad_weight.to(weight.dtype)
