"""The sampler of `tests/engines`, on a GPU if there is one."""

# vLLM has to be the first thing that this process does.
from drgrpo.rollout.engine import RolloutEngine  # isort: skip

from pathlib import Path

from drgrpo.config import TrainConfig
from tests.engines.sampler_worker import SamplerWorker


class DeviceSampler(SamplerWorker):
    """A rollout engine that can also be broken."""

    def __init__(self, config: TrainConfig, model_path: Path, on_gpu: bool) -> None:
        RolloutEngine.__init__(self, config, model_path, on_gpu=on_gpu)
        self._reset = self.llm.reset_prefix_cache
