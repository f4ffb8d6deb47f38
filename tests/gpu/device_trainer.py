"""The trainer rank of `tests/engines` on a device that is named."""

from pathlib import Path

import torch

from drgrpo.config import TrainConfig
from drgrpo.trainer import zero
from tests.engines.trainer_worker import RecordingTrainer, TrainerWorker


class DeviceTrainerWorker(TrainerWorker):
    """Runs many cases in one process on `device`, each on a trainer of its own."""

    def __init__(self, device: str, rank: int, world_size: int, port: int) -> None:
        self.rank, self.world_size = rank, world_size
        # The only one that it sees, by its number: NCCL wants one.
        self.device = torch.device(device, 0) if device == "cuda" else torch.device(device)
        zero.init_process_group(rank, world_size, "127.0.0.1", port, self.device)
        self._trainers: dict[str, RecordingTrainer] = {}

    def _trainer(self, config: TrainConfig) -> RecordingTrainer:
        path = Path(config.model.path)
        return RecordingTrainer(config, path, rank=self.rank, world_size=self.world_size, device=self.device)
