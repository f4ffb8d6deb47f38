"""What the device allows, beside what was measured: how far each stage is from its limit, and so what bounds it."""

from collections.abc import Mapping
from typing import Any

from drgrpo.trainer.flops import peak_flops

# Memory bandwidth, byte/s, by a part of the device's name (vendors' datasheets).
_BANDWIDTHS = {"H100": 3.35e12, "H200": 4.8e12, "A100": 2.04e12, "L40S": 0.864e12, "RTX 4090": 1.008e12}


def bounds(step: Mapping[str, Any]) -> dict[str, Any]:
    """Generation and update of a result of `benchmarks.step` beside their limits in seconds; null on an unknown device.

    Generation takes one pass over the weights (2 bytes a parameter) for each token of the longest completion:
    `weights_read_s` is that over the memory bandwidth; `arithmetic_s` is 2 N FLOP for every token sampled. Far above
    both, it is bounded by what starts the kernels. Of the update `arithmetic_s` is 6 N FLOP for every token computed.
    """
    median, parameters = step["median"], step["num_parameters"]
    name = next(iter(step["hardware"]["gpus"]), "")
    peak, bandwidth = peak_flops(name), next((value for part, value in _BANDWIDTHS.items() if part in name), None)
    passes = median["completion_length/max"]
    generation, update = median["busy/RolloutEngine.generate"], median["busy/TrainerRank.update"]
    return {
        "generation": {
            "seconds": generation,
            "passes": passes,
            "seconds_per_pass": generation / passes,
            "weights_read_s": bandwidth and passes * 2 * parameters / bandwidth,
            "arithmetic_s": peak and 2 * parameters * median["rollout/completion_tokens"] / peak,
        },
        "update": {
            "seconds": update,
            "arithmetic_s": peak and 6 * parameters * median["update/computed_tokens"] / peak,
        },
    }
