"""Student's t: the interval of a mean over a few seeds."""

import math
from collections.abc import Sequence

_Z = 1.959963984540054
"""0.975 quantile of the normal distribution."""

_QUANTILES = (12.70620, 4.30265, 3.18245, 2.77645, 2.57058, 2.44691, 2.36462, 2.30600, 2.26216, 2.22814)
"""0.975 quantiles for 1 to 10 degrees of freedom."""


def t_quantile(degrees: int) -> float:
    """The 0.975 quantile of Student's t with `degrees` >= 1 degrees of freedom.

    Beyond ten it is the expansion in 1/degrees (Abramowitz and Stegun, 26.7.5), right to 2e-4.
    """
    if degrees <= len(_QUANTILES):
        return _QUANTILES[degrees - 1]
    first = (_Z**3 + _Z) / 4
    second = (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / 96
    third = (3 * _Z**7 + 19 * _Z**5 + 17 * _Z**3 - 15 * _Z) / 384
    return _Z + first / degrees + second / degrees**2 + third / degrees**3


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean, mean ± t · s / √n with the unbiased s; None of fewer than two values."""
    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    half = t_quantile(n - 1) * deviation / math.sqrt(n)
    return mean - half, mean + half
