"""The update on a GPU: in float32 exact as on a CPU, in bfloat16 (the variable-length kernel) but for rounding."""

from pathlib import Path

import pytest
import torch

from drgrpo.advantage import compute_advantages
from drgrpo.loss import policy_loss
from tests.engines import reference
from tests.engines.comparison import SAMPLES, Trainers
from tests.engines.conftest import make_config
from tests.engines.reference import largest_error

# The vectors of the engine tests, on the trainers of this directory.
from tests.engines.test_gradients import (
    expected,
    test_a_head_of_its_own_has_a_gradient_of_its_own,
    test_a_step_without_any_advantage_has_no_gradient,
    test_options_of_the_loss_reach_the_gradient,
    test_samples_without_advantage_are_skipped_but_counted,
    test_the_gradient_does_not_depend_on_how_it_is_computed,
    test_the_gradient_of_a_step_equals_the_reference,
)
from tests.engines.test_off_policy import test_later_minibatches_are_clipped_against_frozen_logprobs
from tests.engines.test_optimizer_steps import (
    test_bfloat16_gradients_accumulate_in_float32,
    test_optimizer_steps_equal_plain_adamw_with_clipping_and_schedule,
)

__all__ = [
    "expected",
    "test_a_head_of_its_own_has_a_gradient_of_its_own",
    "test_a_step_without_any_advantage_has_no_gradient",
    "test_bfloat16_gradients_accumulate_in_float32",
    "test_later_minibatches_are_clipped_against_frozen_logprobs",
    "test_optimizer_steps_equal_plain_adamw_with_clipping_and_schedule",
    "test_options_of_the_loss_reach_the_gradient",
    "test_samples_without_advantage_are_skipped_but_counted",
    "test_the_gradient_does_not_depend_on_how_it_is_computed",
    "test_the_gradient_of_a_step_equals_the_reference",
]

pytestmark = pytest.mark.gpu

# bfloat16 resolves 2^-9 = 0.2 % of a value; a gradient is a sum of products of some tens of such values in a row.
BETWEEN_PLANS, FROM_REFERENCE = 0.02, 0.05


@pytest.mark.parametrize(
    "options",
    [
        {"trainer.tokens_per_microbatch": 16},
        {"trainer.share_prompts": False},
        {"trainer.gradient_checkpointing": 1},
        {"trainer.gradient_checkpointing": 0.5},
    ],
    ids=["one_sequence_at_a_time", "own_prompts", "recomputed", "half_recomputed"],
)
def test_packed_bfloat16_gradients_agree_with_unpacked_ones(
    options: dict[str, int], tiny_model: Path, trainers: Trainers, expected: reference.Gradient
) -> None:
    half = {"model.dtype": "bfloat16"}
    packed, other = (
        trainers(1).call("gradient", make_config(tiny_model, {**half, **chosen}), SAMPLES) for chosen in ({}, options)
    )
    between = largest_error(packed["gradient"], other["gradient"])
    errors = [largest_error(result["gradient"], expected.by_name) for result in (packed, other)]
    print(f"largest relative L2 error: between the two {between:.1e}, from the reference {errors}")
    assert between <= BETWEEN_PLANS
    assert max(errors) <= FROM_REFERENCE


def test_advantage_and_loss_have_the_numbers_of_the_readme(device: torch.device) -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0], device=device)
    advantages = compute_advantages(rewards, torch.tensor([7, 7, 7, 7], device=device))
    assert advantages.tolist() == [0.75, -0.25, -0.25, -0.25]
    mask = torch.arange(4, device=device) < torch.tensor([2, 4, 4, 3], device=device)[:, None]
    logprobs = torch.full((4, 4), -1.5, device=device, requires_grad=True)
    loss, _ = policy_loss(logprobs, logprobs.detach(), advantages, mask, num_sequences=4, max_completion_tokens=8)
    loss.backward()
    assert loss.item() == 0.0390625
    assert logprobs.grad is not None
    assert logprobs.grad[0].tolist() == [-0.0234375, -0.0234375, 0.0, 0.0]


def test_logprobs_of_the_packed_row_are_those_of_plain_transformers(tiny_model: Path, trainers: Trainers) -> None:
    model = reference.load_model(tiny_model)
    plain = [reference.token_logprobs(model, sample, 1.0) for sample in SAMPLES]
    for dtype, tolerance in (("float32", 1e-4), ("bfloat16", 0.02)):
        scored = trainers(1).call("score", make_config(tiny_model, {"model.dtype": dtype}), SAMPLES, 1.0)
        differences = torch.cat(
            [(torch.tensor(row).double() - exact).abs() for row, exact in zip(scored, plain, strict=True)]
        )
        print(f"{dtype}: mean |Δlogp| {differences.mean():.1e}, largest {differences.max():.1e}")
        assert differences.mean() <= tolerance
