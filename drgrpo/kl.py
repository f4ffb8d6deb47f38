"""Per-token estimators of a KL divergence from one sampled token (Schulman, "Approximating KL divergence", 2020)."""

from typing import Literal

import torch
from torch import Tensor

KlEstimator = Literal["k1", "k2", "k3"]


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, *, estimator: KlEstimator = "k3") -> Tensor:
    """Estimate of KL(p ‖ ref) in nats per token, for tokens sampled from p; any shape, differentiable in both.

    With d = log ref - log p: `k1` = -d (unbiased, can be negative), `k2` = d²/2 (biased, never negative),
    `k3` = exp(d) - 1 - d (unbiased, never negative). As a loss term over tokens of p, the expected gradient of k2 is
    that of KL(p ‖ ref), of k3 that of KL(ref ‖ p), and of k1 zero: k1 measures, it does not pull.

    Raises ValueError for an unknown estimator.
    """
    difference = ref_logprobs - logprobs
    match estimator:
        case "k1":
            return -difference
        case "k2":
            return difference.square() / 2
        case "k3":
            # expm1 keeps the digits that exp(d) - 1 loses for the small d that are usual here
            return torch.expm1(difference) - difference
        case _:
            raise ValueError(f"KL estimator is {estimator!r}; use 'k1', 'k2' or 'k3'")
