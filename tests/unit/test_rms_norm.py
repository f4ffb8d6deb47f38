"""RMSNorm with its additions, against autograd in float64 and by hand."""

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from drgrpo.trainer.rms_norm import add_norm, norm_gradient, normed_again

EPS = 1e-5


def exact(total: Tensor, weight: Tensor) -> Tensor:
    return total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + EPS) * weight


def test_a_row_by_hand() -> None:
    # 3 + 0, 3 + 1 have the mean square 12.5; with eps = 12.5 it is divided by 5
    total, normed, rstd = add_norm(
        torch.tensor([[3.0, 3.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([1.0, 2.0]), 12.5
    )
    assert (total.tolist(), rstd.tolist()) == ([[3.0, 4.0]], [pytest.approx(0.2)])
    assert normed[0].tolist() == pytest.approx([0.6, 1.6])
    # unit = (0.6, 0.8), gradient of it (1, 2), their mean product 1.1; 0.2 (1 - 0.66), 0.2 (2 - 0.88), plus 10 each
    grad, grad_weight = norm_gradient(torch.ones(1, 2), total, rstd, torch.tensor([1.0, 2.0]), torch.full((1, 2), 10.0))
    assert grad[0].tolist() == pytest.approx([10.068, 10.224])
    assert grad_weight.tolist() == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize("with_residual", [False, True])
def test_norm_and_gradients_are_those_of_autograd(with_residual: bool) -> None:
    torch.manual_seed(0)
    x, residual, grad_normed, grad_total = (torch.randn(5, 7, dtype=torch.float64) for _ in range(4))
    weight = torch.randn(7, dtype=torch.float64)
    inputs = ((x + residual if with_residual else x).requires_grad_(), weight.clone().requires_grad_())
    wanted = exact(*inputs)
    loss = (wanted * grad_normed).sum() + (inputs[0] * grad_total).sum() * with_residual
    wanted_grads = torch.autograd.grad(loss, inputs)

    x, residual, grad_normed, grad_total, weight = (t.float() for t in (x, residual, grad_normed, grad_total, weight))
    total, normed, rstd = add_norm(x, residual if with_residual else None, weight, EPS)
    assert (total is x) is not with_residual
    assert torch.equal(normed_again(total, rstd, weight), normed)
    grads = norm_gradient(grad_normed, total, rstd, weight, grad_total if with_residual else None)
    for found, expected in zip((total, normed, *grads), (inputs[0], wanted, *wanted_grads), strict=True):
        torch.testing.assert_close(found.double(), expected.detach(), atol=1e-6, rtol=1e-5)


def test_in_16_bits_it_rounds_where_hugging_face_does() -> None:
    torch.manual_seed(0)
    module = LlamaRMSNorm(64, eps=EPS).to(torch.bfloat16)
    weight = torch.nn.init.normal_(module.weight).detach()
    x, residual, grad_normed = (torch.randn(50, 64).bfloat16() for _ in range(3))
    total, normed, rstd = add_norm(x, residual, weight, EPS)
    wanted = module(x + residual)
    assert torch.equal(total, x + residual) and torch.equal(normed, wanted)
    assert (normed.dtype, rstd.dtype) == (torch.bfloat16, torch.float32)
    grad, grad_weight = norm_gradient(grad_normed, total, rstd, weight, None)
    (wanted * grad_normed).sum().backward()
    torch.testing.assert_close(grad_weight, module.weight.grad, atol=0.1, rtol=0.01)
    assert grad.dtype == torch.bfloat16
