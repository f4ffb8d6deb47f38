"""Seconds on a device: what it was given is done when the clock is read."""

import time

import torch


def now() -> float:
    """Seconds of a clock without a date, read once the GPU, where there is one, is idle."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
