"""A supervised step on the real ZeRO-3 engine against the cross-entropy that transformers itself computes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from drgrpo.trainer.batch import Sample
from tests.engines import reference
from tests.engines.comparison import TOLERANCE, Trainers, both_world_sizes
from tests.engines.conftest import make_config
from tests.engines.reference import largest_error
from tests.engines.samples import random_samples
from tests.tiny_model import VOCAB_SIZE

pytestmark = pytest.mark.engine

END = 2
# One completion a prompt, of 1 to 24 tokens, which ends in the end token.
DEMONSTRATIONS = [
    replace(sample, group_id=i, advantage=1.0, completion_ids=[*sample.completion_ids[:-1], END])
    for i, sample in enumerate(random_samples(3, num_groups=3, group_size=4))
]
OPTIONS = {
    "data.prompts_per_step": 12,
    "rollout.group_size": 1,
    "adv_norm.mean_level": "none",
    "loss.aggregation": "token_mean",
    "trainer.tokens_per_microbatch": 64,
}


def cross_entropy(model: Any, samples: Sequence[Sample]) -> Tensor:
    """The loss of transformers for one padded batch: the mean over all completion tokens, prompts not counted."""
    width = max(sample.prompt_len + sample.completion_len for sample in samples)
    ids, labels = torch.zeros(2, len(samples), width, dtype=torch.long).unbind()
    attention = torch.zeros(len(samples), width, dtype=torch.long)
    labels.fill_(-100)
    for row, sample in enumerate(samples):
        end = sample.prompt_len + sample.completion_len
        ids[row, :end] = torch.tensor([*sample.prompt_ids, *sample.completion_ids])
        labels[row, sample.prompt_len : end] = torch.tensor(sample.completion_ids)
        attention[row, :end] = 1
    loss: Tensor = model(ids, attention_mask=attention, labels=labels).loss
    return loss


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@both_world_sizes
def test_the_gradient_is_that_of_the_mean_cross_entropy_of_completion_tokens(
    world_size: int, tiny_model: Path, trainers: Trainers
) -> None:
    model = reference.load_model(tiny_model).double()
    loss = cross_entropy(model, DEMONSTRATIONS)
    result = trainers(world_size).call("gradient", make_config(tiny_model, OPTIONS), DEMONSTRATIONS)
    error = largest_error(result["gradient"], gradients(model, loss))
    print(f"largest relative L2 error {error:.2e}")
    assert error <= TOLERANCE
    assert result["loss"] == pytest.approx(-1.0)  # the surrogate is minus the ratio, which says nothing


@both_world_sizes
def test_the_mean_over_sequences_is_the_mean_of_their_cross_entropies(
    world_size: int, tiny_model: Path, trainers: Trainers
) -> None:
    model = reference.load_model(tiny_model).double()
    losses = [cross_entropy(model, [sample]) for sample in DEMONSTRATIONS]
    config = make_config(tiny_model, {**OPTIONS, "loss.aggregation": "sequence_mean"})
    result = trainers(world_size).call("gradient", config, DEMONSTRATIONS)
    assert largest_error(result["gradient"], gradients(model, torch.stack(losses).mean())) <= TOLERANCE


@both_world_sizes
def test_the_metric_is_the_cross_entropy_before_the_step_and_falls_as_with_plain_adamw(
    world_size: int, tiny_model: Path, trainers: Trainers
) -> None:
    config = make_config(tiny_model, {**OPTIONS, "total_steps": 3, "optimizer.lr": 1e-3, "optimizer.grad_clip": 0.0})
    result = trainers(world_size).call("update", config, [DEMONSTRATIONS] * 3)
    model = reference.load_model(tiny_model)
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    losses = []
    for _ in range(3):
        loss = cross_entropy(model, DEMONSTRATIONS)
        gradients(model, loss)
        adamw.step()
        losses.append(loss.item())
    assert [metrics["nll"] for metrics in result["metrics"]] == pytest.approx(losses, rel=1e-5)
    assert losses == sorted(losses, reverse=True) and losses[0] > 0.9 * torch.tensor(VOCAB_SIZE).log().item()
    assert result["metrics"][0]["ratio_max"] == 1.0


def test_samples_without_advantage_are_no_part_of_the_metric(tiny_model: Path, trainers: Trainers) -> None:
    model = reference.load_model(tiny_model)
    samples = [*DEMONSTRATIONS[:5], *(replace(sample, advantage=0.0) for sample in DEMONSTRATIONS[5:])]
    result = trainers(2).call("update", make_config(tiny_model, OPTIONS), [samples])
    assert result["metrics"][0]["nll"] == pytest.approx(cross_entropy(model, DEMONSTRATIONS[:5]).item(), rel=1e-5)
