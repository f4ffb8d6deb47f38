"""Evaluation statistics over problems: bootstrap intervals and the unbiased pass@k."""

import numpy as np
import numpy.typing as npt

# indices drawn at once: 8 MiB, whatever the number of problems and resamples
CHUNK_INDICES = 1_000_000


def bootstrap_interval(
    values: npt.ArrayLike, *, confidence: float = 0.95, num_resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of `values` and its percentile bootstrap interval: (mean, low, high).

    `values` holds one number per problem (its accuracy, or average over samples): problems are what is resampled,
    because samples of one problem are not independent. Reproducible for a seed. Raises ValueError for no values,
    non-finite values, and a confidence outside (0, 1).
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"need a non-empty list of finite numbers, got shape {array.shape}")
    if not 0 < confidence < 1 or num_resamples < 1:
        raise ValueError(
            f"confidence ({confidence}) must lie in (0, 1) and num_resamples ({num_resamples}) be positive"
        )
    rng = np.random.default_rng(seed)
    rows = max(CHUNK_INDICES // array.size, 1)
    chunks = (min(rows, num_resamples - start) for start in range(0, num_resamples, rows))
    means = np.concatenate([array[rng.integers(array.size, size=(n, array.size))].mean(axis=1) for n in chunks])
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(array.mean()), float(low), float(high)


def paired_interval(
    before: npt.ArrayLike,
    after: npt.ArrayLike,
    *,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Mean of `after - before` and its bootstrap interval: (mean, low, high).

    Both hold one number per problem, in the same order. Pairing removes the spread between problems, so the interval is
    narrower than that of two separate evaluations. Raises ValueError for unequal lengths.
    """
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"before and after must hold the same problems, got shapes {first.shape} and {second.shape}")
    return bootstrap_interval(second - first, confidence=confidence, num_resamples=num_resamples, seed=seed)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased probability that at least one of k samples is right: 1 - C(n-c, k)/C(n, k) (arXiv 2107.03374, eq. 1).

    Raises ValueError unless 1 <= k <= num_samples and 0 <= num_correct <= num_samples.
    """
    if not (1 <= k <= num_samples and 0 <= num_correct <= num_samples):
        raise ValueError(f"pass@{k} of {num_correct} right in {num_samples} samples: need 1 <= k <= n and 0 <= c <= n")
    if num_samples - num_correct < k:
        return 1.0
    # the product form stays finite where the binomials overflow
    return float(1.0 - np.prod(1.0 - k / np.arange(num_samples - num_correct + 1, num_samples + 1)))
