"""Plans of micro-batches: which sequences are computed together, on which rank, under a budget of tokens.

A segment is one prompt with the completions that share its computation. Plans change how much is computed, never the
gradient: the loss sums over sequences and is divided by constants of the whole step.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar


class SequenceLengths(Protocol):
    """What a plan needs to know of a sequence: its group, and the lengths in tokens of its two parts."""

    @property
    def group_id(self) -> int | str:
        """Sequences of one group have the same prompt."""
        ...

    @property
    def prompt_len(self) -> int:
        """Tokens of the prompt."""
        ...

    @property
    def completion_len(self) -> int:
        """Tokens of the completion."""
        ...


@dataclass(frozen=True, slots=True)
class Segment:
    """One prompt and the completions computed with it.

    Attributes:
        indexes: Positions in the planned list, ascending; they belong to one group.
        num_tokens: Length of the prompt plus those of the completions.
    """

    indexes: tuple[int, ...]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Microbatch:
    """Segments of one forward and backward pass; without any, a pass that only keeps a rank in step."""

    segments: tuple[Segment, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens computed."""
        return sum(segment.num_tokens for segment in self.segments)

    @property
    def indexes(self) -> tuple[int, ...]:
        """Positions of its sequences in the planned list, in the order of computation."""
        return tuple(index for segment in self.segments for index in segment.indexes)


T = TypeVar("T")

# A segment is at most this share of what a rank computes, or large groups could not be spread evenly over few ranks.
_SEGMENTS_PER_RANK = 8


def plan_microbatches(
    sequences: Sequence[SequenceLengths], *, token_budget: int, num_ranks: int, share_prompts: bool
) -> list[list[Microbatch]]:
    """Micro-batches as [rank][position], each sequence in exactly one of them, the same plan for the same input.

    Every rank gets the same number, because ZeRO-3 gathers weights in all of them together; empty ones fill up. On
    each rank the fullest come first, so that ranks wait little for one another. Without sequences there are none.

    Args:
        sequences: What to plan; all prompts of a group have the same length.
        token_budget: Tokens of a micro-batch. A sequence over it gets a micro-batch of its own.
        num_ranks: Ranks, over which the tokens are balanced.
        share_prompts: Compute a prompt once for several completions of its group; else once for each.

    Raises:
        ValueError: Budget or rank count below 1, or prompts of different lengths in a group.
    """
    if token_budget < 1 or num_ranks < 1:
        raise ValueError(f"token_budget and num_ranks must be at least 1, got {token_budget} and {num_ranks}")
    segments = _segments(sequences, token_budget, num_ranks, share_prompts)
    ranks = [_fill(share, token_budget) for share in _spread(segments, num_ranks)]
    num_microbatches = max(len(microbatches) for microbatches in ranks)
    return [microbatches + [Microbatch()] * (num_microbatches - len(microbatches)) for microbatches in ranks]


def _segments(
    sequences: Sequence[SequenceLengths], token_budget: int, num_ranks: int, share_prompts: bool
) -> list[Segment]:
    if not share_prompts:
        return [Segment((i,), item.prompt_len + item.completion_len) for i, item in enumerate(sequences)]
    groups: dict[int | str, list[int]] = defaultdict(list)
    for index, item in enumerate(sequences):
        groups[item.group_id].append(index)
    limit = token_budget
    if num_ranks > 1:
        total = sum(item.completion_len for item in sequences)
        limit = min(token_budget, total // (num_ranks * _SEGMENTS_PER_RANK))
    return [segment for group in groups.values() for segment in _split_group(sequences, group, limit)]


def _split_group(sequences: Sequence[SequenceLengths], group: list[int], limit: int) -> list[Segment]:
    """Segments of at most `limit` tokens, or of one completion where that alone has more."""
    prompt_len = sequences[group[0]].prompt_len
    if any(sequences[index].prompt_len != prompt_len for index in group):
        raise ValueError(f"group {sequences[group[0]].group_id!r} has prompts of different lengths")
    bins = _best_fit([(sequences[index].completion_len, index) for index in group], limit - prompt_len)
    return [Segment(tuple(sorted(items)), prompt_len + num_tokens) for num_tokens, items in bins]


def _fill(segments: Iterable[Segment], token_budget: int) -> list[Microbatch]:
    bins = _best_fit([(segment.num_tokens, segment) for segment in segments], token_budget)
    microbatches = [Microbatch(tuple(items)) for _, items in bins]
    return sorted(microbatches, key=lambda microbatch: (-microbatch.num_tokens, microbatch.indexes))


def _best_fit(items: Iterable[tuple[int, T]], capacity: int) -> list[tuple[int, list[T]]]:
    """Best-fit decreasing: each item, longest first, goes where it leaves the least room, ties to the first."""
    loads: list[int] = []
    bins: list[list[T]] = []
    for size, item in sorted(items, key=lambda entry: -entry[0]):
        fitting = [index for index, load in enumerate(loads) if load + size <= capacity]
        if fitting:
            best = max(fitting, key=loads.__getitem__)
            loads[best] += size
            bins[best].append(item)
        else:
            loads.append(size)
            bins.append([item])
    return list(zip(loads, bins, strict=True))


def _spread(segments: list[Segment], num_ranks: int) -> list[list[Segment]]:
    """Longest first, each to the rank with the fewest tokens (Graham 1969), ties to the first rank."""
    shares: list[list[Segment]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for segment in sorted(segments, key=lambda item: (-item.num_tokens, item.indexes)):
        rank = loads.index(min(loads))
        shares[rank].append(segment)
        loads[rank] += segment.num_tokens
    return shares
