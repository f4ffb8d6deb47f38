"""KL estimators: hand numbers, and expectations over a small categorical distribution."""

import math

import pytest
import torch

from drgrpo.kl import kl_estimate


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [("k1", math.log(2)), ("k2", math.log(2) ** 2 / 2), ("k3", 0.5 - 1 + math.log(2))],
)
def test_a_reference_at_half_the_probability(estimator: str, expected: float):
    value = kl_estimate(torch.tensor(math.log(0.6)), torch.tensor(math.log(0.3)), estimator=estimator)
    assert value.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [("k1", -math.log(3)), ("k2", math.log(3) ** 2 / 2), ("k3", 3 - 1 - math.log(3))],
)
def test_a_reference_at_three_times_the_probability(estimator: str, expected: float):
    value = kl_estimate(torch.tensor(math.log(0.2)), torch.tensor(math.log(0.6)), estimator=estimator)
    assert value.item() == pytest.approx(expected, abs=1e-6)


def test_k3_keeps_its_digits_for_small_differences():
    value = kl_estimate(torch.tensor(-2.0, dtype=torch.float32), torch.tensor(-2.0 + 2**-12), estimator="k3")
    assert value.item() == pytest.approx((2**-12) ** 2 / 2, rel=2e-2)


def test_an_unknown_estimator_is_refused():
    with pytest.raises(ValueError, match="'k4'"):
        kl_estimate(torch.zeros(1), torch.zeros(1), estimator="k4")


LOGITS = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64)
REF = torch.log_softmax(torch.tensor([-0.5, 0.4, 0.2, 0.9], dtype=torch.float64), dim=0)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(estimator: str):
    logp = torch.log_softmax(LOGITS, dim=0)
    expectation = (logp.exp() * kl_estimate(logp, REF, estimator=estimator)).sum()
    torch.testing.assert_close(expectation, (logp.exp() * (logp - REF)).sum())


def gradient(value: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(value, logits)[0]


def test_as_loss_terms_k2_pulls_along_the_reverse_kl_k3_along_the_forward_kl_and_k1_not_at_all():
    logits = LOGITS.clone().requires_grad_()
    logp = torch.log_softmax(logits, dim=0)
    sampled = logp.detach().exp()
    expected = {
        "k1": torch.zeros_like(LOGITS),
        "k2": gradient((logp.exp() * (logp - REF)).sum(), logits),
    }
    logp = torch.log_softmax(logits, dim=0)
    expected["k3"] = gradient((REF.exp() * (REF - logp)).sum(), logits)
    for estimator, wanted in expected.items():
        logp = torch.log_softmax(logits, dim=0)
        actual = gradient((sampled * kl_estimate(logp, REF, estimator=estimator)).sum(), logits)
        torch.testing.assert_close(actual, wanted)
