"""Which completions make up each optimizer step: a permutation of groups that is a pure function of (seed, step)."""

import itertools
import random
from collections.abc import Sequence


def minibatches(group_ids: Sequence[int], *, size: int, seed: int, step: int) -> list[list[int]]:
    """Split a rollout's samples, given the group of each, into optimizer steps of `size` samples.

    Groups come in random order and stay together, so that an optimizer step computes a prompt once for all its
    completions; one group in two steps at most where `size` is no multiple of a group. What samples were lost are
    missing from all steps alike, so that none is of a few. A single step keeps the table's order.
    """
    members: dict[int, list[int]] = {}
    for index, group in enumerate(group_ids):
        members.setdefault(group, []).append(index)
    groups = list(members.values())
    if len(group_ids) > size:
        random.Random(f"minibatches {seed} {step}").shuffle(groups)
    order = [index for group in groups for index in group]
    num_steps = -(-len(order) // size)
    bounds = [len(order) * index // max(num_steps, 1) for index in range(num_steps + 1)]
    return [order[start:end] for start, end in itertools.pairwise(bounds)]
