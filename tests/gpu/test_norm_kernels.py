"""The norm's kernels against RMSNorm in float64, for rows that fill no block and for few and many of them."""

import pytest
import torch
from torch import Tensor

from drgrpo.trainer.rms_norm import norm_functions
from tests.unit.test_batch import relative_error

pytestmark = pytest.mark.gpu

EPS = 1e-5


def exact(inputs: tuple[Tensor, Tensor], grad_normed: Tensor, grad_total: Tensor) -> list[Tensor]:
    """Total, normed, and the gradients of total and weight."""
    total, weight = (tensor.detach().clone().requires_grad_() for tensor in inputs)
    normed = total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + EPS) * weight
    loss = (normed * grad_normed).sum() + (total * grad_total).sum()
    return [total.detach(), normed.detach(), *torch.autograd.grad(loss, (total, weight))]


@pytest.mark.parametrize("columns", [100, 576, 1536, 3584])
@pytest.mark.parametrize("rows", [1, 13, 1000, 5000])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("with_residual", [False, True])
def test_norm_and_gradients_are_those_of_float64(
    columns: int, rows: int, dtype: torch.dtype, tolerance: float, with_residual: bool, device: torch.device
) -> None:
    torch.manual_seed(0)
    x, residual, grad_normed, grad_total = (torch.randn(rows, columns).to(dtype) for _ in range(4))
    weight = (1 + torch.randn(columns) / 4).to(dtype)
    added, extra = x.double() + residual.double() * with_residual, grad_total.double() * with_residual
    wanted = exact((added, weight.double()), grad_normed.double(), extra)

    functions = norm_functions(device)
    # Laid out by columns, as a gradient may come.
    given = [tensor.to(device).t().contiguous().t() for tensor in (x, residual, grad_normed, grad_total)]
    kept = weight.to(device)
    total, normed, rstd = functions.add_norm(given[0], given[1] if with_residual else None, kept, EPS)
    assert torch.equal(functions.normed_again(total, rstd, kept), normed)
    grads = functions.norm_gradient(given[2], total, rstd, kept, given[3] if with_residual else None)
    for found, expected in zip((total, normed, *grads), wanted, strict=True):
        assert (found.shape, found.dtype) == (expected.shape, dtype)
        assert relative_error(found.cpu(), expected) < tolerance


def test_gradients_do_not_change_from_run_to_run(device: torch.device) -> None:
    torch.manual_seed(0)
    total, grad = (torch.randn(5000, 1536, dtype=torch.bfloat16, device=device) for _ in range(2))
    weight, rstd = torch.ones(1536, dtype=torch.bfloat16, device=device), torch.ones(5000, device=device)
    runs = [norm_functions(device).norm_gradient(grad, total, rstd, weight, grad) for _ in range(3)]
    assert all(torch.equal(one, other) for run in runs[1:] for one, other in zip(runs[0], run, strict=True))
