"""The trainer's side of a push: gather a bucket, stage it, have the sampler load it, until the policy is through."""

from dataclasses import astuple
from typing import Any, Protocol

import torch

from drgrpo.trainer.weights import buckets, gathered, named_weights, parameter_numel
from drgrpo.weight_sync.staging import StagingBuffer

_BUCKET_BYTES = {"cpu": 128 << 20, "cuda": 512 << 20}


class Sampler(Protocol):
    """What a push needs of a sampler; each call returns when it is done."""

    def open_staging(self, handle: dict[str, Any]) -> None:
        """Map the trainer's staging buffer."""

    def start_push(self) -> None:
        """Begin a push."""

    def load_bucket(self, entries: list[list[Any]], policy_version: int) -> None:
        """Load the tensors that now lie in the staging buffer."""

    def finish_push(self) -> None:
        """Make the pushed weights current and forget cached prefixes."""


class Sender:
    """Pushes a ZeRO-3 engine's weights; ranks without a sampler of their own still take part in the gathers."""

    def __init__(self, engine: Any, sampler: Sampler | None, device: torch.device) -> None:
        self.weights, self.sampler, self.device = named_weights(engine), sampler, device
        itemsize = self.weights[0][1].element_size()
        largest = max(parameter_numel(parameter) for _, parameter in self.weights)
        self.max_numel = max(largest, _BUCKET_BYTES[device.type] // itemsize)
        if sampler is not None:
            # Each tensor starts on a 256-byte boundary.
            self.staging = StagingBuffer(self.max_numel * itemsize + 256 * len(self.weights), device)
            try:
                sampler.open_staging(self.staging.handle)
            finally:
                self.staging.unlink()

    def push(self, policy_version: int) -> None:
        """Bring the sampler to this policy; a collective over the trainer's ranks."""
        if self.sampler is not None:
            self.sampler.start_push()
        for bucket in buckets(self.weights, max_numel=self.max_numel):
            tensors = gathered(bucket)
            if self.sampler is None:
                for _ in tensors:
                    pass
                continue
            entries = self.staging.put(tensors)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.sampler.load_bucket([list(astuple(entry)) for entry in entries], policy_version)
        if self.sampler is not None:
            self.sampler.finish_push()
