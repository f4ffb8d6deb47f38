"""Triton kernels for the RMSNorm of a decoder layer, with the addition before it and the one after its gradient.

They are bound by memory: each reads its tensors once. The functions take and give what those of this name in
`drgrpo.trainer.rms_norm` do.
"""

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# The gradient's kernel walks rows: enough programs that loads of some overlap sums of others, and enough rows for each
# that what it writes of the weight's gradient is little beside what it reads.
_PROGRAMS_PER_PROCESSOR, _ROWS_PER_PROGRAM = 8, 4


@triton.jit
def _scaled(total, rstd, weight):  # type: ignore[no-untyped-def]  # Triton reads these as its own types
    # Rounded to the tensor's type before the product with the weight and after it, as Hugging Face's models do.
    rounded = (total.to(tl.float32) * rstd).to(total.dtype)
    return (rounded.to(tl.float32) * weight.to(tl.float32)).to(total.dtype)


@triton.jit
def _add_norm(  # type: ignore[no-untyped-def]
    x, residual, weight, totals, normed, rstds, eps,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr, WITH_RESIDUAL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < COLUMNS
    place = row.to(tl.int64) * COLUMNS + columns
    total = tl.load(x + place, mask=inside, other=0.0)
    if WITH_RESIDUAL:
        added = tl.load(residual + place, mask=inside, other=0.0)
        total = (total.to(tl.float32) + added.to(tl.float32)).to(total.dtype)
        tl.store(totals + place, total, mask=inside)
    wide = total.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(wide * wide, 0) / COLUMNS + eps)
    tl.store(rstds + row, rstd)
    tl.store(normed + place, _scaled(total, rstd, tl.load(weight + columns, mask=inside, other=0.0)), mask=inside)


@triton.jit
def _normed_again(  # type: ignore[no-untyped-def]
    totals, rstds, weight, normed, COLUMNS: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < COLUMNS
    place = row.to(tl.int64) * COLUMNS + columns
    total = tl.load(totals + place, mask=inside, other=0.0)
    found = _scaled(total, tl.load(rstds + row), tl.load(weight + columns, mask=inside, other=0.0))
    tl.store(normed + place, found, mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def _norm_gradient(  # type: ignore[no-untyped-def]
    grad_normed, totals, rstds, weight, grad_totals, grads, partials, num_rows,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr, WITH_TOTAL: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < COLUMNS
    wide_weight = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    partial = tl.zeros([BLOCK], tl.float32)
    for row in range(program, num_rows, tl.num_programs(0)):
        place = tl.cast(row, tl.int64) * COLUMNS + columns
        # All loads come before the sum over columns, at which the program's threads wait for each other.
        total = tl.load(totals + place, mask=inside, other=0.0)
        outer = tl.load(grad_normed + place, mask=inside, other=0.0).to(tl.float32)
        if WITH_TOTAL:
            added = tl.load(grad_totals + place, mask=inside, other=0.0)
        rstd = tl.load(rstds + row)
        unit = total.to(tl.float32) * rstd
        partial += outer * unit.to(total.dtype).to(tl.float32)
        inner = outer * wide_weight
        grad = rstd * (inner - unit * (tl.sum(inner * unit, 0) / COLUMNS))
        if WITH_TOTAL:
            grad += added.to(tl.float32)
        tl.store(grads + place, grad.to(total.dtype), mask=inside)
    tl.store(partials + program * COLUMNS + columns, partial, mask=inside)


@lru_cache(maxsize=32)
def _launch(num_columns: int) -> dict[str, int]:
    """A program has the whole row in registers, 16 columns a thread: two loads of 16 bytes of a 16-bit type."""
    block = triton.next_power_of_2(num_columns)
    return {"COLUMNS": num_columns, "BLOCK": block, "num_warps": min(max(block // 512, 1), 16)}


@lru_cache(maxsize=8)
def _max_programs(device: torch.device) -> int:
    return _PROGRAMS_PER_PROCESSOR * int(torch.cuda.get_device_properties(device).multi_processor_count)


def add_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x + residual [R, D] (`x` itself without one), the norm of that [R, D], and what it was scaled by, [R] float32."""
    x = x.contiguous()
    added = x if residual is None else residual.contiguous()
    normed, total = torch.empty_like(x), x if residual is None else torch.empty_like(x)
    rstd = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    grid: Any = (x.shape[0],)
    _add_norm[grid](
        x, added, weight, total, normed, rstd, eps, WITH_RESIDUAL=residual is not None, **_launch(x.shape[1])
    )
    return total, normed, rstd


def normed_again(total: Tensor, rstd: Tensor, weight: Tensor) -> Tensor:
    """The normed tensor of `add_norm` [R, D], made of what else it gave."""
    total = total.contiguous()
    normed = torch.empty_like(total)
    grid: Any = (total.shape[0],)
    _normed_again[grid](total, rstd, weight, normed, **_launch(total.shape[1]))
    return normed


def norm_gradient(
    grad_normed: Tensor, total: Tensor, rstd: Tensor, weight: Tensor, grad_total: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of `add_norm`'s total [R, D] and of its weight [D] for those of its normed and of its total [R, D]."""
    grad_normed, total = grad_normed.contiguous(), total.contiguous()
    added = total if grad_total is None else grad_total.contiguous()
    grad = torch.empty_like(total)
    num_rows, num_columns = total.shape
    programs = min(triton.cdiv(num_rows, _ROWS_PER_PROGRAM), _max_programs(total.device))
    partials = torch.empty(programs, num_columns, dtype=torch.float32, device=total.device)
    grid: Any = (programs,)
    _norm_gradient[grid](
        grad_normed, total, rstd, weight, added, grad, partials, num_rows,
        WITH_TOTAL=grad_total is not None, **_launch(num_columns),
    )  # fmt: skip
    return grad, partials.sum(0).to(weight.dtype)
