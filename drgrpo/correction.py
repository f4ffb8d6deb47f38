"""Mismatch between sampler and trainer: measuring it, and importance weights that correct for it.

vLLM and the trainer give the same token slightly different probabilities even at equal weights. With
w = π_trainer,old / π_sampler the corrected surrogate is weight · surrogate: truncated importance sampling (TIS, Yao et
al. 2025) caps w, masked importance sampling (MIS, IcePop) drops what lies outside [1/C, C]. The paper's setting is off.
"""

from typing import Literal

import torch
from torch import Tensor

from drgrpo.kl import kl_estimate

Correction = Literal["off", "token_tis", "sequence_tis", "token_mask", "sequence_mask"]


def correction_weights(
    old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, *, correction: Correction, cap: float
) -> tuple[Tensor, Tensor]:
    """Detached weights [B, T] of the per-token surrogate, and where [B, T] they cut (True: capped or dropped).

    - `token_tis`: min(w_t, C); `sequence_tis`: min(Π w_t, C) for every token of the sequence
    - `token_mask`: w_t, or 0 where w_t lies outside [1/C, C]; `sequence_mask`: the same for Π w_t of the whole sequence
    - `off`: 1

    Masked positions take no part, and are never reported as cut. Raises ValueError for an unknown correction, a cap of
    0 or less, and a mask with a cap below 1, which would drop every token.
    """
    if correction not in ("off", "token_tis", "sequence_tis", "token_mask", "sequence_mask"):
        raise ValueError(
            f"correction is {correction!r}; use 'off', 'token_tis', 'sequence_tis', 'token_mask' or 'sequence_mask'"
        )
    if cap <= 0 or (cap < 1 and correction.endswith("_mask")):
        raise ValueError(f"correction_cap is {cap}; it must be positive, and at least 1 for a mask")
    log_ratio = torch.where(mask, old_logprobs - sampler_logprobs, 0.0).detach()
    if correction == "off":
        return torch.ones_like(log_ratio), torch.zeros_like(mask)
    if correction.startswith("sequence"):
        log_ratio = log_ratio.sum(dim=1, keepdim=True).expand_as(log_ratio)
    ratio = log_ratio.exp()
    if correction.endswith("_tis"):
        return ratio.clamp(max=cap), mask & (ratio > cap)
    outside = (ratio > cap) | (ratio < 1 / cap)
    return torch.where(outside, 0.0, ratio), mask & outside


def mismatch_metrics(old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Additive sums over the tokens of `mask` [B, T], and a maximum, of how far sampler and trainer disagree.

    `invalid_sampler_logprobs_count`: tokens whose sampler logprob is no finite number; the others leave them out.
    `mismatch_k1_sum`, `mismatch_k3_sum`: KL(sampler ‖ trainer) in nats; `mismatch_abs_sum`: |Δ log p|;
    `mismatch_prob_max`: the largest |Δp|.
    """
    valid = mask & sampler_logprobs.isfinite()
    old, sampler = (torch.where(valid, x.detach(), 0.0) for x in (old_logprobs, sampler_logprobs))
    gap = (old.exp() - sampler.exp()).abs()
    return {
        "invalid_sampler_logprobs_count": (mask & ~valid).sum(dtype=torch.float64),
        "mismatch_k1_sum": kl_estimate(sampler, old, estimator="k1").sum(dtype=torch.float64),
        "mismatch_k3_sum": kl_estimate(sampler, old, estimator="k3").sum(dtype=torch.float64),
        "mismatch_abs_sum": (old - sampler).abs().sum(dtype=torch.float64),
        "mismatch_prob_max": gap.amax().double() if gap.numel() else gap.new_zeros((), dtype=torch.float64),
    }
