"""Model FLOPs utilisation: the share of the device's peak that useful work on tokens makes up."""

# Dense bfloat16 peak, FLOP/s, by a part of the device's name (vendors' datasheets).
_PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}


def peak_flops(device_name: str) -> float | None:
    """Peak of a known device, None for others."""
    return next((peak for part, peak in _PEAKS.items() if part in device_name), None)


def utilisation(*, num_parameters: int, num_tokens: int, seconds: float, peak: float) -> float:
    """6 N tokens / seconds / peak: 2 FLOP a parameter and token forward, 4 backward; recomputation does not count."""
    return 6 * num_parameters * num_tokens / seconds / peak
