"""Which positions of a packed row attend to which: masks segment by segment, or the lengths of one kernel's sequences.

A segment is one prompt followed by the completions that share it. Within a segment the prompt is causal, and every
completion sees the whole prompt and itself so far.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SegmentLayout:
    """Where a segment lies in the packed row: `start`, prompt length, and input length of each completion."""

    start: int
    prompt_len: int
    completion_lens: tuple[int, ...]

    @property
    def end(self) -> int:
        """One past the segment's last position."""
        return self.start + self.prompt_len + sum(self.completion_lens)


@dataclass(frozen=True, slots=True)
class KernelLayout:
    """A packed row of T positions as S sequences of one variable-length kernel whose causal mask ends bottom right.

    A sequence is a whole segment of one completion, or a shared prompt, or a completion whose keys are its prompt's and
    then its own. `cu_queries`, `cu_keys`: [S + 1] int32 delimit them; `max_queries`, `max_keys` are the longest.
    `keys`: [K] positions of the row that are keys, sequence after sequence; None where they lie as the queries do.
    """

    cu_queries: Tensor
    cu_keys: Tensor
    max_queries: int
    max_keys: int
    keys: Tensor | None


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """Attention structure of a packed row.

    `shared_masks` holds, per segment, a bool mask [S, S] (True: may attend) or None where plain causal attention is
    right. It is empty where `kernel` is given.
    """

    segments: tuple[SegmentLayout, ...]
    shared_masks: tuple[Tensor | None, ...] = ()
    kernel: KernelLayout | None = None


def packed_layout(segments: Sequence[SegmentLayout], *, one_kernel: bool, device: torch.device) -> PackedLayout:
    """The layout of these segments, for one kernel or for masks."""
    if one_kernel:
        return PackedLayout(tuple(segments), kernel=_kernel_layout(segments, device))
    return PackedLayout(tuple(segments), tuple(_shared_mask(segment, device) for segment in segments))


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy without making the host wait for the work that the device has queued."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def _shared_mask(segment: SegmentLayout, device: torch.device) -> Tensor | None:
    if len(segment.completion_lens) == 1:
        return None
    lens = torch.tensor([segment.prompt_len, *segment.completion_lens], device=device)
    owner = torch.repeat_interleave(torch.arange(len(lens), device=device), lens)
    same_or_prompt = (owner[:, None] == owner[None, :]) | (owner[None, :] == 0)
    return same_or_prompt.tril()


def _kernel_layout(segments: Sequence[SegmentLayout], device: torch.device) -> KernelLayout:
    sequences = [sequence for segment in segments for sequence in _sequences(segment)]
    queries = [end - start for start, end, _ in sequences]
    keys = [length + len(prompt) for length, (_, _, prompt) in zip(queries, sequences, strict=True)]
    index = None
    if any(prompt for _, _, prompt in sequences):
        spans = [span for start, end, prompt in sequences for span in (prompt, range(start, end))]
        index = to_device(torch.cat([torch.arange(span.start, span.stop) for span in spans]), device)
    return KernelLayout(_cumulative(queries, device), _cumulative(keys, device), max(queries), max(keys), index)


def _sequences(segment: SegmentLayout) -> list[tuple[int, int, range]]:
    """(first query, end of the queries, positions of a prompt that they see besides)."""
    if len(segment.completion_lens) == 1:
        return [(segment.start, segment.end, range(0))]
    first = segment.start + segment.prompt_len
    prompt, found = range(segment.start, first), [(segment.start, first, range(0))]
    for length in segment.completion_lens:
        if length:  # a completion of one token is no input
            found.append((first, first + length, prompt))
        first += length
    return found


def _cumulative(lengths: Sequence[int], device: torch.device) -> Tensor:
    return to_device(torch.tensor([0, *lengths]).cumsum(0).to(torch.int32), device)
