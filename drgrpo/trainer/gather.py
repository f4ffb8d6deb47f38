"""Rows of a tensor, the same one several times if asked: a shared prompt's keys, or what predicts first tokens."""

from typing import Any

import torch
from torch import Tensor


class _Gather(torch.autograd.Function):
    """Index selection whose gradient adds up in float32: the shares of eight completions would be rounded eight times.

    It is faster than that of `x[index]` besides, which sorts.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.num_rows = rows.shape[0]
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        (index,) = ctx.saved_tensors
        total = torch.zeros((ctx.num_rows, *grad.shape[1:]), dtype=torch.float32, device=grad.device)
        return total.index_add_(0, index, grad.float()).to(grad.dtype), None


def gather(rows: Tensor, index: Tensor) -> Tensor:
    """`rows` [T, ...] at `index` [K]; returns [K, ...]. Where rows repeat, their gradients are summed in float32."""
    found: Tensor = _Gather.apply(rows, index)
    return found
