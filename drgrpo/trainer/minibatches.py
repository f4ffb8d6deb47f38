"""Which completions make up each optimizer step: a permutation that is a pure function of (seed, step)."""

import random


def minibatches(num_samples: int, *, size: int, seed: int, step: int) -> list[list[int]]:
    """Split a rollout's samples into optimizer steps of `size`; the last is smaller when samples were lost.

    One minibatch keeps the table's order, so that groups stay together.
    """
    order = list(range(num_samples))
    if num_samples > size:
        random.Random(f"minibatches {seed} {step}").shuffle(order)
    return [order[start : start + size] for start in range(0, num_samples, size)]
