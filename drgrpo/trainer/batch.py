"""A packed micro-batch: segments laid end to end, each one prompt followed by the completions that share it.

The last token of a completion predicts nothing, so it is a target but never an input.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from drgrpo.trainer.layout import PackedLayout, SegmentLayout, packed_layout, to_device


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt and its completion, as vLLM returned the tokens.

    `sampler_logprobs` is empty when the sampler recorded none.
    """

    group_id: int
    prompt_ids: Sequence[int] | np.ndarray
    completion_ids: Sequence[int] | np.ndarray
    advantage: float = 0.0
    sampler_logprobs: Sequence[float] | np.ndarray = ()

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
    """Accumulates the parts of a packed row, segment by segment."""

    def __init__(self) -> None:
        self.input_ids: list[np.ndarray] = []
        self.position_ids: list[np.ndarray] = []
        self.predictors: list[np.ndarray] = []
        self.targets: list[np.ndarray] = []
        self.rows: list[np.ndarray] = []
        self.columns: list[np.ndarray] = []
        self.segments: list[SegmentLayout] = []
        self.length = self.num_rows = self.num_columns = 0

    def add(self, prompt_ids: np.ndarray, completions: Sequence[np.ndarray]) -> None:
        start, prompt_len = self.length, len(prompt_ids)
        self._extend(prompt_ids, 0)
        for completion in completions:
            self._add_completion(start + prompt_len - 1, prompt_len, completion)
        self.segments.append(SegmentLayout(start, prompt_len, tuple(max(len(c) - 1, 0) for c in completions)))

    def _add_completion(self, prompt_end: int, prompt_len: int, completion: np.ndarray) -> None:
        size, first = len(completion), self.length
        if size:
            self.predictors += [np.array([prompt_end]), np.arange(first, first + size - 1)]
        self._extend(completion[:-1], prompt_len)
        self.targets.append(completion)
        self.rows.append(np.full(size, self.num_rows))
        self.columns.append(np.arange(size))
        self.num_rows, self.num_columns = self.num_rows + 1, max(self.num_columns, size)

    def _extend(self, token_ids: np.ndarray, position: int) -> None:
        self.input_ids.append(token_ids)
        self.position_ids.append(np.arange(position, position + len(token_ids)))
        self.length += len(token_ids)


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
        prompts = [_ids(samples[i].prompt_ids) for i in segment]
        if not all(np.array_equal(prompt, prompts[0]) for prompt in prompts):
            raise ValueError(f"samples {list(segment)} share a segment but not a prompt")
        packer.add(prompts[0], [_ids(samples[i].completion_ids) for i in segment])
    return _to_tensors(packer, packed_layout(packer.segments, one_kernel=one_kernel, device=device), device)


def _ids(values: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.asarray(values, dtype=np.int64)


def _to_tensors(packer: _Packer, layout: PackedLayout, device: torch.device) -> PackedBatch:
    def long(parts: list[np.ndarray]) -> Tensor:
        return to_device(torch.from_numpy(np.concatenate(parts or [_ids(())])), device)

    return PackedBatch(
        input_ids=long(packer.input_ids)[None],
        position_ids=long(packer.position_ids)[None],
        predictors=long(packer.predictors),
        targets=long(packer.targets),
        rows=long(packer.rows),
        columns=long(packer.columns),
        layout=layout,
        num_rows=packer.num_rows,
        num_columns=max(packer.num_columns, 1),
    )
