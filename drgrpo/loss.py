"""The clipped policy loss of Dr. GRPO (arXiv 2503.20783) and of the algorithms it is compared with.

    surrogate_it = max(-A_i r_it, -A_i clip(r_it, 1 - eps_low, 1 + eps_high)),   r = π / π_old
    constant:       1/(N·L) · Σ_i Σ_t surrogate_it      Dr. GRPO; L is the configured completion limit
    sequence_mean:  1/N · Σ_i mean_t surrogate_it       GRPO (arXiv 2402.03300)
    token_mean:     1/num_tokens · Σ_i Σ_t surrogate    DAPO (arXiv 2503.14476)

Every normaliser is a number of the whole optimizer step, so the loss is additive: the sum over micro-batches and ranks
is the loss of the step, however the sequences were split.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from drgrpo.correction import Correction, correction_weights, mismatch_metrics
from drgrpo.kl import KlEstimator, kl_estimate

Aggregation = Literal["constant", "sequence_mean", "token_mean"]


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    aggregation: Aggregation = "constant",
    num_sequences: int,
    num_tokens: int | None = None,
    max_completion_tokens: int,
    clip_eps_low: float = 0.2,
    clip_eps_high: float = 0.2,
    sampler_logprobs: Tensor | None = None,
    correction: Correction = "off",
    correction_cap: float = 2.0,
    ref_logprobs: Tensor | None = None,
    kl_coef: float = 0.0,
    kl_estimator: KlEstimator = "k3",
    entropy: Tensor | None = None,
    entropy_coef: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """This micro-batch's share of the loss of an optimizer step, and its metrics.

    Shapes: `logprobs`, `old_logprobs`, `mask`, `sampler_logprobs`, `ref_logprobs`, `entropy` are [B, T], one row per
    sequence, `mask` true at the completion tokens that are trained on; `advantages` is [B]. Log-probabilities and
    entropy are in nats. Masked positions may hold anything, NaN included. Only `logprobs` and `entropy` get gradients,
    so `old_logprobs=logprobs` is right where the two are the same. Computed in float32, or float64 if given that.

    Normalisers: `num_sequences` is N, the sequences of the optimizer step over all ranks and micro-batches, dropped
    ones included; `num_tokens` is its count of mask tokens, needed by `token_mean`; `max_completion_tokens` is L.

    Optional terms share the aggregation: `+ kl_coef · KL(policy ‖ reference)`, `- entropy_coef · entropy`. `correction`
    weights the surrogate against the sampler mismatch (`drgrpo.correction`) and never changes a normaliser.

    Metrics are detached float64 scalars over this micro-batch, named `*_sum` and `*_count` (add them up) or `*_max`:
    see `merge_metrics`. Raises ValueError for wrong shapes and for an option whose tensor or number is missing.
    """
    _check_shapes(mask, advantages, (logprobs, old_logprobs, sampler_logprobs, ref_logprobs, entropy))
    mask = mask.bool()
    logprobs, old = _clean(logprobs, mask), _clean(old_logprobs, mask).detach()
    advantages = advantages.detach().to(logprobs.dtype)[:, None]
    divisors = _token_divisors(mask, aggregation, num_sequences, num_tokens, max_completion_tokens)
    per_token = clipped_surrogate(logprobs - old, advantages, eps_low=clip_eps_low, eps_high=clip_eps_high)
    metrics = _policy_metrics(logprobs.detach() - old, advantages, mask, eps_low=clip_eps_low, eps_high=clip_eps_high)
    weights, mismatch = _correction_factor(old, sampler_logprobs, mask, correction, correction_cap)
    kl, kl_metrics = _kl_term(logprobs, ref_logprobs, mask, kl_coef, kl_estimator)
    bonus, entropy_metrics = _entropy_term(entropy, mask, entropy_coef)
    per_token = torch.where(mask, per_token * weights + kl - bonus, 0.0)
    return (per_token / divisors).sum(), metrics | mismatch | kl_metrics | entropy_metrics


def clipped_surrogate(log_ratio: Tensor, advantages: Tensor, *, eps_low: float, eps_high: float) -> Tensor:
    """PPO's pessimistic loss per token (arXiv 1707.06347, eq. 7, negated); `advantages` broadcasts to `log_ratio`."""
    ratio = log_ratio.exp()
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - eps_low, 1 + eps_high))


def _check_shapes(mask: Tensor, advantages: Tensor, tensors: tuple[Tensor | None, ...]) -> None:
    shapes = {tuple(t.shape) for t in (mask, *tensors) if t is not None}
    if mask.ndim != 2 or len(shapes) != 1 or advantages.shape != mask.shape[:1]:
        raise ValueError(f"need [B, T] tensors and advantages [B], got {sorted(shapes)} and {tuple(advantages.shape)}")


def _clean(values: Tensor, mask: Tensor) -> Tensor:
    # replaced before any arithmetic: a NaN times a zero mask is a NaN, in the loss and in the gradient
    return torch.where(mask, values.to(torch.promote_types(values.dtype, torch.float32)), 0.0)


def _token_divisors(
    mask: Tensor, aggregation: str, num_sequences: int, num_tokens: int | None, max_completion_tokens: int
) -> Tensor | int:
    if num_sequences < 1 or max_completion_tokens < 1:
        raise ValueError(
            f"num_sequences {num_sequences} and max_completion_tokens {max_completion_tokens} must be >= 1"
        )
    match aggregation:
        case "constant":
            return num_sequences * max_completion_tokens
        case "sequence_mean":
            return num_sequences * mask.sum(dim=1, keepdim=True).clamp(min=1)
        case "token_mean" if num_tokens:
            return num_tokens
        case "token_mean":
            raise ValueError(f"aggregation 'token_mean' needs num_tokens, got {num_tokens}")
        case _:
            raise ValueError(f"aggregation is {aggregation!r}; use 'constant', 'sequence_mean' or 'token_mean'")


def _correction_factor(
    old: Tensor, sampler_logprobs: Tensor | None, mask: Tensor, correction: Correction, cap: float
) -> tuple[Tensor | float, dict[str, Tensor]]:
    if sampler_logprobs is None:
        if correction != "off":
            raise ValueError(f"correction {correction!r} needs sampler_logprobs")
        return 1.0, {}
    sampler = _clean(sampler_logprobs, mask).detach()
    weights, cut = correction_weights(old, sampler, mask, correction=correction, cap=cap)
    return weights, mismatch_metrics(old, sampler, mask) | {"corrected_sum": _sum(cut)}


def _kl_term(
    logprobs: Tensor, ref_logprobs: Tensor | None, mask: Tensor, coef: float, estimator: KlEstimator
) -> tuple[Tensor | float, dict[str, Tensor]]:
    if ref_logprobs is None:
        if coef:
            raise ValueError(f"kl_coef {coef} needs ref_logprobs")
        return 0.0, {}
    kl = kl_estimate(logprobs, _clean(ref_logprobs, mask).detach(), estimator=estimator)
    return coef * kl if coef else 0.0, {"kl_sum": _sum(kl)}


def _entropy_term(entropy: Tensor | None, mask: Tensor, coef: float) -> tuple[Tensor | float, dict[str, Tensor]]:
    if entropy is None:
        if coef:
            raise ValueError(f"entropy_coef {coef} needs entropy")
        return 0.0, {}
    entropy = _clean(entropy, mask)
    return coef * entropy if coef else 0.0, {"entropy_sum": _sum(entropy)}


def _sum(values: Tensor) -> Tensor:
    return values.detach().sum(dtype=torch.float64)


def _policy_metrics(
    log_ratio: Tensor, advantages: Tensor, mask: Tensor, *, eps_low: float, eps_high: float
) -> dict[str, Tensor]:
    ratio, zero = torch.where(mask, log_ratio.exp(), 0.0), torch.zeros_like(log_ratio)
    return {
        "tokens_count": _sum(mask),
        "sequences_count": _sum(mask.any(dim=1)),
        "clip_low_sum": _sum(mask & (advantages < 0) & (ratio < 1 - eps_low)),
        "clip_high_sum": _sum(mask & (advantages > 0) & (ratio > 1 + eps_high)),
        "ratio_sum": _sum(ratio),
        "ratio_max": ratio.amax().double() if ratio.numel() else ratio.new_zeros((), dtype=torch.float64),
        "policy_kl_k1_sum": _sum(kl_estimate(zero, log_ratio, estimator="k1")),
        "policy_kl_k3_sum": _sum(kl_estimate(zero, log_ratio, estimator="k3")),
    }


def merge_metrics(metrics: Sequence[Mapping[str, float | Tensor]]) -> dict[str, float]:
    """Metrics of micro-batches, ranks or optimizer steps as one: sums and counts added, of maxima the largest."""
    return {key: value.item() for key, value in combine_metrics(metrics).items()}


def combine_metrics(metrics: Sequence[Mapping[str, float | Tensor]]) -> dict[str, Tensor]:
    """What `merge_metrics` reads, float64 and still on its device."""
    combined: dict[str, Tensor] = {}
    for key in dict.fromkeys(key for part in metrics for key in part):
        values = torch.stack([torch.as_tensor(part[key], dtype=torch.float64) for part in metrics if key in part])
        if key.endswith("_max"):
            combined[key] = values.amax()
        elif key.endswith(("_sum", "_count")):
            combined[key] = values.sum()
        else:
            raise ValueError(f"metric {key!r} must end in _sum, _count or _max to be merged")
    return combined


SUMMARY_NAMES = {
    "tokens_count": "num_tokens",
    "sequences_count": "num_sequences",
    "computed_tokens_count": "computed_tokens",
    "invalid_sampler_logprobs_count": "invalid_sampler_logprobs",
    "clip_low_sum": "clip_fraction_low",
    "clip_high_sum": "clip_fraction_high",
    "corrected_sum": "corrected_fraction",
    "ratio_sum": "ratio_mean",
    "mismatch_prob_max": "mismatch_max_abs_prob",
}


def summarize_metrics(merged: Mapping[str, float]) -> dict[str, float]:
    """Merged metrics as means over tokens (nats, or shares of tokens), maxima and counts; of no tokens, only counts.

    Those of the mismatch are over the tokens whose sampler logprob is a number.
    """
    num_tokens = merged.get("tokens_count", 0.0)
    num_valid = num_tokens - merged.get("invalid_sampler_logprobs_count", 0.0)
    means = {}
    for key, value in merged.items():
        divisor = num_valid if key.startswith("mismatch_") else num_tokens
        if divisor or key.endswith("_count"):
            means[key] = value / divisor if key.endswith("_sum") else value
    if num_tokens:
        means["clip_fraction"] = means["clip_low_sum"] + means["clip_high_sum"]
    return {SUMMARY_NAMES.get(key, key.removesuffix("_sum")): value for key, value in means.items()}
