"""How many forward passes an update takes on the real ZeRO-3 engine."""

from pathlib import Path
from typing import Any

import pytest
import torch

from drgrpo.config import TrainConfig
from drgrpo.trainer.batch import Sample
from drgrpo.trainer.microbatches import Microbatches
from drgrpo.trainer.minibatches import minibatches
from tests.engines.comparison import SAMPLES, Trainers, both_world_sizes
from tests.engines.conftest import make_config
from tests.engines.samples import with_zero_advantages

pytestmark = pytest.mark.engine

TOKENS = {"trainer.tokens_per_microbatch": 48}


def planned(config: TrainConfig, samples: list[Sample], indices: list[int], world_size: int) -> list[int]:
    """Completion tokens of each micro-batch that rank 0 computes for these samples."""
    micro = Microbatches(config, rank=0, world_size=world_size, device=torch.device("cpu"))
    plan = micro.plan(samples, micro.trained(samples, indices))
    return [sum(samples[i].completion_len for segment in batch for i in segment) for batch in plan]


def passes(result: dict[str, Any], *, backward: bool) -> list[int]:
    """Completion tokens of rank 0's forward passes, those with a backward pass or those without."""
    return [num_tokens for with_grad, num_tokens in result["forwards"] if with_grad == backward]


@both_world_sizes
def test_one_optimizer_step_of_a_rollout_takes_one_forward_pass_for_each_micro_batch(
    world_size: int, tiny_model: Path, trainers: Trainers
) -> None:
    config, samples = make_config(tiny_model, TOKENS), with_zero_advantages(SAMPLES, {6})
    result = trainers(world_size).call("update", config, [samples])
    expected = planned(config, samples, list(range(len(samples))), world_size)
    assert len(expected) >= 3
    assert passes(result, backward=True) == expected
    assert passes(result, backward=False) == []


@both_world_sizes
def test_later_optimizer_steps_add_one_forward_pass_without_gradient_for_each_of_their_micro_batches(
    world_size: int, tiny_model: Path, trainers: Trainers
) -> None:
    config = make_config(tiny_model, {**TOKENS, "trainer.completions_per_update": 4})
    samples = with_zero_advantages(SAMPLES, {6})
    result = trainers(world_size).call("update", config, [samples])
    parts = minibatches([sample.group_id for sample in samples], size=4, seed=config.seed, step=0)
    assert passes(result, backward=True) == [n for part in parts for n in planned(config, samples, part, world_size)]
    later = [i for part in parts[1:] for i in part]
    assert passes(result, backward=False) == planned(config, samples, later, world_size)
    assert [with_grad for with_grad, _ in result["forwards"]] == sorted(g for g, _ in result["forwards"])  # before all


@both_world_sizes
def test_the_first_layers_run_again_in_the_backward_pass_as_far_as_recomputation_is_asked_for(
    world_size: int, tiny_model: Path, trainers: Trainers
) -> None:
    for share, again in ((0, [1, 1]), (0.5, [2, 1]), (1, [2, 2])):
        config = make_config(tiny_model, {**TOKENS, "trainer.gradient_checkpointing": share})
        num_passes = len(planned(config, SAMPLES, list(range(len(SAMPLES))), world_size))
        assert trainers(world_size).call("attention_passes", config, SAMPLES) == [n * num_passes for n in again]
