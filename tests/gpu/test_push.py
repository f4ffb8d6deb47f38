"""After a push sampler and trainer agree on a GPU, through CUDA IPC, and nothing grows over many steps."""

from pathlib import Path

import pytest

from tests.engines.test_weight_sync import DISAGREE
from tests.gpu.conftest import MakePair

pytestmark = pytest.mark.gpu

# Mean |Δlogp| in nats.
AGREE = {"float32": 1e-4, "bfloat16": 0.02}
NUM_STEPS, SETTLED = 50, 10
MIB = 2**20


@pytest.mark.parametrize("dtype", AGREE)
def test_sampler_and_trainer_agree_after_every_push(dtype: str, tiny_model: Path, make_pair: MakePair) -> None:
    graphs = {"rollout.enforce_eager": dtype == "float32"}  # a push has to reach captured CUDA graphs too
    pair = make_pair(tiny_model, {"model.dtype": dtype, "optimizer.lr": 1e-3, **graphs})
    assert pair.difference() <= AGREE[dtype]
    for _ in range(2):
        pair.train()
        if dtype == "float32":
            assert pair.difference() > DISAGREE  # a push that brought nothing would be seen
        pair.push()
        assert pair.difference() <= AGREE[dtype]
        assert pair.difference_on_samples() <= AGREE[dtype]
        assert pair.sampler.call("policy_version") == pair.version


def test_memory_does_not_grow_over_fifty_steps(tiny_model: Path, make_pair: MakePair) -> None:
    pair = make_pair(tiny_model, {"model.dtype": "bfloat16", "optimizer.lr": 1e-5})
    own, whole = [], []
    for _ in range(NUM_STEPS):
        pair.difference_on_samples()
        pair.train()
        pair.push()
        own.append(pair.trainer.call("tensor_bytes"))
        whole.append(pair.trainer.call("device_bytes"))
    print(f"trainer MiB {[used // MIB for used in own]}\ndevice MiB {[used // MIB for used in whole]}")
    assert max(own[-SETTLED:]) <= max(own[:SETTLED]) + MIB
    assert max(whole[-SETTLED:]) <= max(whole[:SETTLED]) + 64 * MIB
