"""Engines on a GPU for the tests of this directory, which are those of `tests/engines` and some of their own.

Without a CUDA device all are skipped. `TEST_DEVICE=cpu pytest tests/gpu` runs them on a CPU, where they prove
themselves and nothing about a GPU.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from drgrpo.cluster.runtime import engine_environment
from drgrpo.config import TrainConfig
from drgrpo.device_lock import visible_devices
from drgrpo.settings import Settings
from tests.engines.conftest import TrainerRanks, free_port, make_config, tiny_model, untied_model
from tests.engines.process import EngineProcess
from tests.engines.test_weight_sync import Pair

__all__ = ["tiny_model", "untied_model"]

DEVICE = os.environ.get("TEST_DEVICE", "cuda")
ON_GPU = DEVICE == "cuda"
# Several engines of tiny models share the device.
SAMPLER_SHARE = 0.1

MakePair = Callable[[Path, Mapping[str, Any]], Pair]


@pytest.fixture(scope="session", autouse=True)
def device() -> torch.device:
    """The device under test; without it every test is skipped."""
    if ON_GPU and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(DEVICE)


def environment(config: TrainConfig, role: Literal["rollout", "trainer"], *, rank: int = 0) -> dict[str, str]:
    """What the cluster would set for an engine of this role; each rank sees a device of its own."""
    variables = engine_environment(Settings(num_threads=0 if ON_GPU else 1), config, role, on_gpu=ON_GPU)
    return variables | ({"CUDA_VISIBLE_DEVICES": visible_devices()[rank]} if ON_GPU else {})


class DeviceRanks(TrainerRanks):
    """All ranks of a trainer, each on a device of its own."""

    def __init__(self, *, world_size: int) -> None:
        port = free_port()
        self.processes = [
            EngineProcess(
                "tests.gpu.device_trainer.DeviceTrainerWorker",
                *(DEVICE, rank, world_size, port),
                environment=environment(TrainConfig(), "trainer", rank=rank),
            )
            for rank in range(world_size)
        ]


@pytest.fixture(scope="session")
def trainers() -> Iterator[Callable[[int], DeviceRanks]]:
    """Trainers by number of ranks, started when first asked for; more ranks than devices skip the test."""
    started: dict[int, DeviceRanks] = {}

    def get(world_size: int) -> DeviceRanks:
        if ON_GPU and torch.cuda.device_count() < world_size:
            pytest.skip(f"needs {world_size} CUDA devices")
        if world_size not in started:
            started[world_size] = DeviceRanks(world_size=world_size)
        return started[world_size]

    yield get
    for ranks in started.values():
        ranks.close()


@pytest.fixture
def make_pair() -> Iterator[MakePair]:
    """Makes a trainer connected to a sampler on the same device, for a model and options by dotted path."""
    engines: list[EngineProcess] = []

    def make(model: Path, options: Mapping[str, Any]) -> Pair:
        quick = {
            "rollout.gpu_memory_utilization": SAMPLER_SHARE,
            "rollout.kv_cache_gib": 1,
            "rollout.enforce_eager": True,
        }
        config = make_config(model, {**quick, **options})
        target = "tests.gpu.device_sampler.DeviceSampler"
        sampler = EngineProcess(target, config, model, ON_GPU, environment=environment(config, "rollout"))
        engines.append(sampler)
        sampler.call("policy_version")  # vLLM measures free memory while it starts: one engine after the other
        target, port = "tests.gpu.device_rank.DeviceRank", free_port()
        trainer = EngineProcess(target, config, ON_GPU, port, environment=environment(config, "trainer"))
        engines.append(trainer)
        trainer.call("connect_over", sampler.spare)
        return Pair(trainer, sampler)

    yield make
    for engine in reversed(engines):
        engine.close()
