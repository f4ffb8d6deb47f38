"""A packed micro-batch: segments laid end to end, each one prompt followed by the completions that share it.

The last token of a completion predicts nothing, so it is a target but never an input.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drgrpo.trainer.layout import PackedLayout, SegmentLayout, packed_layout, to_device


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt and its completion, as vLLM returned the tokens.

    `sampler_logprobs` is empty when the sampler recorded none.
    """

    group_id: int
    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    advantage: float = 0.0
    sampler_logprobs: Sequence[float] = ()

    @property
    def prompt_len(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_ids)

    @property
    def completion_len(self) -> int:
        """Tokens of the completion."""
        return len(self.completion_ids)


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Inputs of one forward pass.

    `input_ids`, `position_ids`: [1, T]. `predictors`: [C] position whose hidden state predicts each completion
    token; `targets`: [C] that token. `rows`, `columns`: [C] where the token lies in the padded [B, L] view.
    """

    input_ids: Tensor
    position_ids: Tensor
    predictors: Tensor
    targets: Tensor
    rows: Tensor
    columns: Tensor
    layout: PackedLayout
    num_rows: int
    num_columns: int

    def pad(self, values: Tensor) -> Tensor:
        """Spread per-token `values` [C] over [B, L], zero elsewhere; differentiable."""
        padded = values.new_zeros(self.num_rows, self.num_columns)
        return padded.index_put((self.rows, self.columns), values)

    def mask(self) -> Tensor:
        """[B, L] bool: True where a completion token lies."""
        return self.pad(torch.ones_like(self.targets, dtype=torch.float32)).bool()


class _Packer:
    """Accumulates the lists of a packed row, segment by segment."""

    def __init__(self) -> None:
        self.input_ids: list[int] = []
        self.position_ids: list[int] = []
        self.predictors: list[int] = []
        self.targets: list[int] = []
        self.rows: list[int] = []
        self.columns: list[int] = []
        self.segments: list[SegmentLayout] = []
        self.num_rows = 0

    def add(self, prompt_ids: Sequence[int], completions: Sequence[Sequence[int]]) -> None:
        start, prompt_len = len(self.input_ids), len(prompt_ids)
        self.input_ids.extend(prompt_ids)
        self.position_ids.extend(range(prompt_len))
        for completion in completions:
            self._add_completion(start + prompt_len - 1, prompt_len, completion)
        self.segments.append(SegmentLayout(start, prompt_len, tuple(max(len(c) - 1, 0) for c in completions)))

    def _add_completion(self, prompt_end: int, prompt_len: int, completion: Sequence[int]) -> None:
        num_inputs, first = max(len(completion) - 1, 0), len(self.input_ids)
        if completion:
            self.predictors.append(prompt_end)
            self.predictors.extend(range(first, first + num_inputs))
        self.input_ids.extend(completion[:num_inputs])
        self.position_ids.extend(range(prompt_len, prompt_len + num_inputs))
        self.targets.extend(completion)
        self.rows.extend([self.num_rows] * len(completion))
        self.columns.extend(range(len(completion)))
        self.num_rows += 1


def pack(
    samples: Sequence[Sample], segments: Sequence[Sequence[int]], *, device: torch.device, one_kernel: bool = False
) -> PackedBatch:
    """Lay `segments` end to end; rows of the padded view follow the segments' sample order.

    A segment lists the indices of samples of one group that share its prompt. `one_kernel`: attention is one
    variable-length kernel, not a call per segment.

    Raises ValueError when two samples of a segment differ in their prompt.
    """
    packer = _Packer()
    for segment in segments:
        members = [samples[i] for i in segment]
        if any(list(m.prompt_ids) != list(members[0].prompt_ids) for m in members):
            raise ValueError(f"samples {list(segment)} share a segment but not a prompt")
        packer.add(members[0].prompt_ids, [m.completion_ids for m in members])
    return _to_tensors(packer, packed_layout(packer.segments, one_kernel=one_kernel, device=device), device)


def _to_tensors(packer: _Packer, layout: PackedLayout, device: torch.device) -> PackedBatch:
    def long(values: list[int]) -> Tensor:
        return to_device(torch.tensor(values, dtype=torch.long), device)

    return PackedBatch(
        input_ids=long(packer.input_ids)[None],
        position_ids=long(packer.position_ids)[None],
        predictors=long(packer.predictors),
        targets=long(packer.targets),
        rows=long(packer.rows),
        columns=long(packer.columns),
        layout=layout,
        num_rows=packer.num_rows,
        num_columns=max(packer.columns, default=0) + 1,
    )
