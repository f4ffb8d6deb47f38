"""How far sampler and trainer are apart after a push."""


def logprob_differences(trainer: list[list[float]], sampler: list[list[float]]) -> dict[str, float]:
    """Mean and largest |Δlogp| in nats over the probes' tokens; both are lists of completions, a float per token."""
    differences = [
        abs(a - b) for row, other in zip(trainer, sampler, strict=True) for a, b in zip(row, other, strict=True)
    ]
    return {
        "sync/mean_abs_logprob_diff": sum(differences) / len(differences),
        "sync/max_abs_logprob_diff": max(differences),
    }
