"""With `trainer.deterministic` a GPU trains to the same bits, also after a death, and samples the same tokens."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from drgrpo.checkpoints import checkpoint_path
from drgrpo.config import TrainConfig
from tests.engines.conftest import free_port, make_config
from tests.engines.process import EngineProcess
from tests.engines.samples import random_samples
from tests.engines.sampling import SAMPLING, generate, sample_requests
from tests.gpu.conftest import ON_GPU, SAMPLER_SHARE, environment

pytestmark = pytest.mark.gpu

NUM_STEPS = 4
QUICK = {"rollout.gpu_memory_utilization": SAMPLER_SHARE, "rollout.kv_cache_gib": 1, "rollout.enforce_eager": True}
UNSCORED = replace(SAMPLING, logprobs=False)
Start = Callable[[TrainConfig], EngineProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a trainer rank in a process of its own."""
    ranks: list[EngineProcess] = []

    def make(config: TrainConfig) -> EngineProcess:
        target = "tests.gpu.device_rank.DeviceRank"
        ranks.append(EngineProcess(target, config, ON_GPU, free_port(), environment=environment(config, "trainer")))
        return ranks[-1]

    yield make
    for rank in ranks:
        rank.close()


@pytest.fixture
def start_sampler() -> Iterator[Start]:
    """Starts a sampler in a process of its own."""
    samplers: list[EngineProcess] = []

    def make(config: TrainConfig) -> EngineProcess:
        target, model = "tests.gpu.device_sampler.DeviceSampler", Path(config.model.path)
        samplers.append(EngineProcess(target, config, model, ON_GPU, environment=environment(config, "rollout")))
        return samplers[-1]

    yield make
    for sampler in samplers:
        sampler.close()


def train(rank: EngineProcess, first: int, last: int) -> None:
    for step in range(first, last):
        rank.call("train", random_samples(step), step=step)


def save(rank: EngineProcess, root: Path, step: int) -> dict[str, str]:
    """Save after `step` steps; digests of the float32 weights and moments."""
    path = checkpoint_path(root, step)
    state = {"step": step, "policy_version": step, "optimizer_step": step, "run_id": "r", "config_digest": "c"}
    rank.call("save_checkpoint", str(path), state)
    rank.call("wait_for_checkpoint")
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.glob("*.safetensors"))
        if not file.name.startswith("rng-")
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_interrupted_training_ends_with_the_bits_of_an_uninterrupted_one(
    dtype: str, tiny_model: Path, tmp_path: Path, start: Start
) -> None:
    options = {"model.dtype": dtype, "trainer.deterministic": True, "optimizer.lr": 1e-3}
    config = make_config(tiny_model, options)
    whole = start(config)
    train(whole, 0, NUM_STEPS)
    expected = save(whole, tmp_path / "whole", NUM_STEPS)

    first = start(config)
    train(first, 0, 2)
    halfway = save(first, tmp_path / "parts", 2)
    first.close()
    second = start(config)
    train(second, 2, 3)  # what the checkpoint has to undo
    second.call("load_checkpoint", str(checkpoint_path(tmp_path / "parts", 2)))
    train(second, 2, NUM_STEPS)
    assert save(second, tmp_path / "parts", NUM_STEPS) == expected != halfway


def test_what_is_sampled_again_is_the_same_in_whatever_company(tiny_model: Path, start_sampler: Start) -> None:
    options = {"model.dtype": "bfloat16", "trainer.deterministic": True, **QUICK}
    sampler = start_sampler(make_config(tiny_model, options))
    wanted = sample_requests()
    whole = generate(sampler, wanted, UNSCORED)
    assert generate(sampler, wanted, UNSCORED) == whole
    assert generate(sampler, wanted[::-1], UNSCORED)[::-1] == whole
    assert generate(sampler, wanted[::3], UNSCORED) == whole[::3]
    assert generate(sampler, wanted[5:6], UNSCORED) == whole[5:6]
