"""A model of three billion parameters trains on one GPU with its optimizer in host memory, beside its sampler."""

import random
import time
from pathlib import Path

import pytest
import torch

from benchmarks.shapes import build_model
from drgrpo.trainer.batch import Sample
from tests.gpu.conftest import ON_GPU, MakePair
from tests.tiny_model import VOCAB_SIZE, build_tiny_tokenizer

pytestmark = pytest.mark.gpu

SHAPE = "qwen2.5-3b" if ON_GPU else "tiny"
PROMPT_TOKENS, COMPLETION_TOKENS = (110, 512) if ON_GPU else (8, 16)
GROUPS, GROUP_SIZE = 4, 8
GIB = 2**30


def samples() -> list[Sample]:
    """Random groups of full length."""
    rng = random.Random(0)
    prompts = [[rng.randrange(3, VOCAB_SIZE) for _ in range(PROMPT_TOKENS)] for _ in range(GROUPS)]
    return [
        Sample(group, prompt, [rng.randrange(VOCAB_SIZE) for _ in range(COMPLETION_TOKENS)], rng.choice([-0.5, 0.5]))
        for group, prompt in enumerate(prompts)
        for _ in range(GROUP_SIZE)
    ]


@pytest.mark.timeout(900)
def test_three_billion_parameters_step_with_the_optimizer_in_host_memory(tmp_path: Path, make_pair: MakePair) -> None:
    tokenizer = tmp_path / "tokenizer"
    build_tiny_tokenizer(tokenizer)
    model = build_model(SHAPE, tmp_path / "model", tokenizer)
    options = {
        "model.dtype": "bfloat16",
        "rollout.max_completion_tokens": COMPLETION_TOKENS,
        "rollout.gpu_memory_utilization": 0.3,
        "data.prompts_per_step": GROUPS,
        "rollout.group_size": GROUP_SIZE,
        "trainer.completions_per_update": GROUPS * GROUP_SIZE,
        "trainer.gradient_checkpointing": 1,
        "trainer.offload_optimizer": True,
        "optimizer.lr": 1e-4,
    }
    pair = make_pair(model, options)
    started = time.perf_counter()
    metrics = pair.trainer.call("train", samples(), step=0)
    seconds, peak = time.perf_counter() - started, pair.trainer.call("peak_bytes")
    before = pair.difference()
    pair.push()
    print(f"update {seconds:.1f} s, trainer's peak {peak / GIB:.1f} GiB, Δlogp {before:.1e} -> {pair.difference():.1e}")
    assert metrics["grad_norm"] > 0 and metrics["trained_sequences"] == GROUPS * GROUP_SIZE
    assert pair.difference() < before
    if ON_GPU:
        whole = torch.cuda.get_device_properties(0).total_memory
        assert pair.trainer.call("device_bytes") < whole
        assert peak < 0.6 * whole
