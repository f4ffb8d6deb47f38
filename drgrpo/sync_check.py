"""How far samplers and trainer are apart after a push."""

import numpy as np

Logprobs = list[list[float]]
"""Completions, a float per token."""


def logprob_differences(trainer: Logprobs, samplers: list[Logprobs]) -> dict[str, float]:
    """Mean and largest |Δlogp| in nats over the probes' tokens, each of the sampler for which it is worst.

    A number that is not finite counts as worst.
    """
    differences = np.abs([np.concatenate(sampler) - np.concatenate(trainer) for sampler in samplers])
    return {
        "sync/mean_abs_logprob_diff": float(differences.mean(axis=1).max()),
        "sync/max_abs_logprob_diff": float(differences.max()),
    }
