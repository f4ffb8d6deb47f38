"""The trainer rank of `tests/engines` that pushes to a sampler, on a GPU if there is one."""

import gc

import torch

from drgrpo.config import TrainConfig
from drgrpo.trainer.rank import TrainerRank
from tests.engines.rank_worker import RankWorker


class DeviceRank(RankWorker):
    """A trainer rank that has joined its group and says how much memory it has taken."""

    def __init__(self, config: TrainConfig, on_gpu: bool, port: int) -> None:
        TrainerRank.__init__(self, config, config.model.path, rank=0, world_size=1, on_gpu=on_gpu)
        self.start("127.0.0.1", port)

    def tensor_bytes(self) -> int:
        """Bytes of the tensors on the device; on a CPU, of those that Python knows."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return torch.cuda.memory_allocated(self.device)
        gc.collect()
        tensors = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def device_bytes(self) -> int:
        """Bytes of the device that all processes together have taken; 0 on a CPU."""
        if self.device.type != "cuda":
            return 0
        free, total = torch.cuda.mem_get_info(self.device)
        return total - free

    def peak_bytes(self) -> int:
        """Most bytes of tensors on the device at one time; 0 on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0
