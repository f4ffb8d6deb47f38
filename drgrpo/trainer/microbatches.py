"""Micro-batches of an optimizer step: which samples are trained, how they are packed, on which rank."""

from collections.abc import Sequence

import torch

from drgrpo.config import TrainConfig
from drgrpo.packing import plan_microbatches
from drgrpo.trainer.batch import PackedBatch, Sample, pack

# One micro-batch: its segments, each the indices of samples that share a prompt.
Plan = list[list[int]]

_EMPTY = Sample(group_id=-1, prompt_ids=(0,), completion_ids=(0,))


class Microbatches:
    """Plans that every rank computes alike, and this rank's share of them."""

    def __init__(self, config: TrainConfig, *, rank: int, world_size: int, device: torch.device) -> None:
        self.config, self.rank, self.world_size, self.device = config, rank, world_size, device
        self.one_kernel = device.type == "cuda" and config.model.dtype != "float32"
        self._needs_all = config.loss.kl_coef > 0 or config.loss.entropy_coef > 0

    def trained(self, samples: Sequence[Sample], part: Sequence[int]) -> list[int]:
        """A sequence whose advantage is exactly 0 has no gradient unless a KL or entropy term gives it one."""
        return [i for i in part if samples[i].completion_len and (self._needs_all or samples[i].advantage != 0.0)]

    def plan(self, samples: Sequence[Sample], indices: Sequence[int]) -> list[Plan]:
        plan = plan_microbatches(
            [samples[i] for i in indices],
            token_budget=self.config.trainer.tokens_per_microbatch,
            num_ranks=self.world_size,
            share_prompts=self.config.trainer.share_prompts,
        )
        # A step without a trained sequence is still a step: Adam's moments decay.
        mine = plan[self.rank]
        planned = [[[indices[i] for i in segment.indexes] for segment in micro.segments] for micro in mine]
        return planned or [[]]

    def pack(self, samples: Sequence[Sample], microbatch: Plan) -> tuple[PackedBatch, list[int]]:
        """The packed tensors and the sample index of each row; an empty micro-batch becomes a row outside the loss."""
        rows = [i for segment in microbatch for i in segment]
        if not rows:
            return pack([_EMPTY], [[0]], device=self.device, one_kernel=self.one_kernel), []
        return pack(samples, microbatch, device=self.device, one_kernel=self.one_kernel), rows
