"""The head's kernels against softmax in float64, for a vocabulary that fills no block and one of many blocks."""

import pytest
import torch

from drgrpo.trainer.logprobs import LogprobHead
from tests.unit.test_batch import exact, relative_error

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("vocabulary", [100, 9001, 151936])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("is_trained", [False, True])
@pytest.mark.parametrize("chunk", [5, 13])  # of 13 tokens: the last three logits kept, or all
def test_logprobs_entropies_and_gradients_are_those_of_softmax(
    vocabulary: int, dtype: torch.dtype, tolerance: float, is_trained: bool, chunk: int, device: torch.device
) -> None:
    torch.manual_seed(0)
    hidden = torch.randint(-4, 5, (13, 16)).double() / 4
    weight = torch.randint(-4, 5, (vocabulary, 16)).double() / 4
    targets, a, b = torch.randint(vocabulary, (13,)), torch.randn(13).double(), torch.randn(13).double()
    inputs = (hidden.clone().requires_grad_(), weight.clone().requires_grad_())
    logprobs, entropy = exact(inputs[0] @ inputs[1].t(), targets, 0.7)
    wanted = torch.autograd.grad((logprobs * a + entropy * b * is_trained).sum(), inputs)

    head = LogprobHead(torch.nn.Parameter(weight.to(device, dtype)), chunk_tokens=chunk, entropy_gradient=is_trained)
    given = hidden.to(device, dtype).requires_grad_()
    found_logprobs, found_entropy = head(given, targets.to(device), 0.7)
    loss = (found_logprobs * a.to(device).float()).sum()
    if is_trained:
        loss = loss + (found_entropy * b.to(device).float()).sum()
    loss.backward()
    assert given.grad is not None and head.weight.grad is not None
    torch.testing.assert_close(found_logprobs.double().cpu(), logprobs.detach(), atol=10 * tolerance, rtol=tolerance)
    torch.testing.assert_close(found_entropy.double().cpu(), entropy.detach(), atol=10 * tolerance, rtol=tolerance)
    for grad, exact_grad in zip((given.grad, head.weight.grad), wanted, strict=True):
        assert relative_error(grad.cpu(), exact_grad) < tolerance
