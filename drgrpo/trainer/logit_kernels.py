"""Triton kernels for what a chunk of logits says of its targets, and for the gradient that goes back through it.

The element-wise work on [chunk, vocabulary] is bound by memory: the first kernel reads the logits once, the second
reads them once and writes the gradient in their place.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096
_NUM_WARPS = 8


@triton.jit
def _statistics(  # type: ignore[no-untyped-def]  # Triton reads these as its own types
    logits, stride, targets, logprobs, entropies, normalizers, scale, num_columns, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    columns = tl.arange(0, BLOCK)
    # Per lane: the largest value so far, the sum of exp(x - largest), and that of x * exp(x - largest).
    largest = tl.full([BLOCK], -1e38, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    weighted = tl.zeros([BLOCK], tl.float32)
    for start in range(0, num_columns, BLOCK):
        inside = start + columns < num_columns
        x = tl.load(logits + start + columns, mask=inside, other=0.0).to(tl.float32) * scale
        higher = tl.where(inside, tl.maximum(largest, x), largest)
        shrink = tl.exp(largest - higher)
        new = tl.where(inside, tl.exp(x - higher), 0.0)
        total = total * shrink + new
        weighted = weighted * shrink + x * new
        largest = higher
    highest = tl.max(largest, 0)
    shrink = tl.exp(largest - highest)
    all_total = tl.sum(total * shrink, 0)
    normalizer = highest + tl.log(all_total)
    target = tl.load(logits + tl.load(targets + row)).to(tl.float32) * scale
    tl.store(logprobs + row, target - normalizer)
    tl.store(entropies + row, normalizer - tl.sum(weighted * shrink, 0) / all_total)
    tl.store(normalizers + row, normalizer)


@triton.jit
def _gradient(  # type: ignore[no-untyped-def]
    logits, stride, targets, normalizers, grads, entropies, entropy_grads, scale, num_columns,
    WITH_ENTROPY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < num_columns
    place = logits + row * stride + columns
    logp = tl.load(place, mask=inside, other=0.0).to(tl.float32) * scale - tl.load(normalizers + row)
    p = tl.exp(logp)
    hit = tl.where(columns == tl.load(targets + row), 1.0, 0.0)
    grad = (hit - p) * (tl.load(grads + row) * scale)
    if WITH_ENTROPY:
        grad -= p * (logp + tl.load(entropies + row)) * (tl.load(entropy_grads + row) * scale)
    tl.store(place, grad.to(logits.dtype.element_ty), mask=inside)


def token_statistics(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Logprob, entropy and log-normaliser [C] float32 of `targets` [C] under `logits` [C, V] / temperature."""
    num_rows, num_columns = logits.shape
    found = torch.empty(3, num_rows, dtype=torch.float32, device=logits.device)
    _statistics[(num_rows,)](
        logits, logits.stride(0), targets, *found, 1.0 / temperature, num_columns, BLOCK=_BLOCK, num_warps=_NUM_WARPS
    )
    return found[0], found[1], found[2]


def logits_gradient(
    logits: Tensor,
    targets: Tensor,
    normalizer: Tensor,
    grad: Tensor,
    temperature: float,
    entropy: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """As the function of this name in `drgrpo.trainer.logprobs`; the gradient takes the place of `logits`."""
    num_rows, num_columns = logits.shape
    entropies, entropy_grads = entropy or (grad, grad)
    grid: Any = (num_rows, triton.cdiv(num_columns, _BLOCK))
    _gradient[grid](
        logits, logits.stride(0), targets, normalizer, grad, entropies, entropy_grads, 1.0 / temperature, num_columns,
        WITH_ENTROPY=entropy is not None, BLOCK=_BLOCK, num_warps=_NUM_WARPS,
    )  # fmt: skip
    return logits
