"""Learning rate as a pure function of the optimizer step: nothing to save, nothing to restore."""

import math
from typing import Literal

Schedule = Literal["constant", "linear", "cosine"]


def learning_rate(
    step: int, *, peak: float, schedule: Schedule, warmup_steps: int, total_steps: int, min_lr_ratio: float
) -> float:
    """Learning rate of optimizer step `step`, counted from 0 over the run of `total_steps` optimizer steps.

    Warm-up: `peak · (step + 1) / warmup_steps`, so that the first step moves and the last of the warm-up has the peak.
    Then `linear` and `cosine` fall from `peak` at step `warmup_steps` to `peak · min_lr_ratio` at step `total_steps`,
    the end of the run, where they stay; `constant` keeps the peak. Raises ValueError for an unknown schedule.
    """
    if schedule not in ("constant", "linear", "cosine"):
        raise ValueError(f"schedule is {schedule!r}; use 'constant', 'linear' or 'cosine'")
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    progress = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
    remaining = 1 - progress if schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return peak * (min_lr_ratio + (1 - min_lr_ratio) * remaining)
