"""The sampler's side, imported inside vLLM's worker: a weight-transfer engine of ours in vLLM's registry.

vLLM drives it through its own calls: init_weight_transfer_engine, start_weight_update, update_weights (a bucket
each), finish_weight_update.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from drgrpo.weight_sync.staging import Entry, open_staging, view

BACKEND = "drgrpo"


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Handle of the trainer's staging buffer."""

    handle: dict[str, Any]


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """A bucket: (name, dtype, shape, offset) of each tensor, and the policy version that it belongs to."""

    entries: list[list[Any]]
    policy_version: int


class StagedWeightEngine(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Loads buckets from the staging buffer into the running model."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    policy_version = 0
    _incoming_version = 0

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Map the trainer's staging buffer."""
        self._buffer = open_staging(init_info.handle, self.device)

    def start_weight_update(self) -> None:
        """On CPU, linear weights are packed at load: reload layer by layer, so that they are packed anew."""
        if self.device.type == "cpu":
            initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load one bucket; the trainer may overwrite the buffer as soon as this returns."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Copy the bucket's tensors into the model."""
        entries = [Entry(name, dtype, tuple(shape), offset) for name, dtype, shape, offset in update_info.entries]
        tensors = [(entry.name, view(self._buffer, entry)) for entry in entries]
        if self.device.type == "cpu":  # the layer-wise reload keeps what it is given until the layer is complete
            tensors = [(name, tensor.clone()) for name, tensor in tensors]
        self.model.load_weights(tensors)
        self._incoming_version = update_info.policy_version

    def finish_weight_update(self) -> None:
        """Make the pushed policy the current one."""
        if self.device.type == "cpu":
            finalize_layerwise_reload(self.model, self.model_config)
            repack_tied_head(self.model)
        self.policy_version = self._incoming_version

    def shutdown(self) -> None:
        """Unmap the staging buffer."""
        self._buffer = torch.empty(0)

    def trainer_send_weights(self, *args: Any, **kwargs: Any) -> None:
        """vLLM 0.26 wants this on the worker's class; the trainer's side is `drgrpo.weight_sync.sender`."""
        raise RuntimeError("weights are sent by drgrpo.weight_sync.sender")


def repack_tied_head(model: nn.Module) -> None:
    """Pack a tied output head again: its checkpoint has no tensor of its own, so the reload passes it by.

    vLLM's CPU head multiplies by a packed copy made at load time; without this it keeps using the old weights.
    """
    for module in model.modules():
        if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
            module.quant_method.process_weights_after_loading(module)


class WorkerExtension:
    """Methods added to vLLM's worker."""

    def policy_version(self) -> int:
        """Version of the policy that the worker samples from."""
        version: int = self.weight_transfer_engine.policy_version  # type: ignore[attr-defined]  # vLLM's worker has it
        return version


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, StagedWeightEngine)
