"""Optimizer steps on the real ZeRO-3 engine: AdamW, clipping, schedule, and the type in which gradients accumulate."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.engines import reference
from tests.engines.comparison import TOLERANCE, Trainers, both_world_sizes
from tests.engines.conftest import make_config
from tests.engines.reference import Objective, largest_error, relative_error
from tests.engines.samples import LIMIT, random_samples, with_zero_advantages

pytestmark = pytest.mark.engine


@both_world_sizes
@pytest.mark.parametrize("grad_clip", [0.2, 0.0])
def test_optimizer_steps_equal_plain_adamw_with_clipping_and_schedule(
    world_size: int, grad_clip: float, tiny_model: Path, trainers: Trainers
) -> None:
    optimizer = {"lr": 1e-3, "weight_decay": 0.1, "schedule": "linear", "warmup_steps": 2, "grad_clip": grad_clip}
    config = make_config(tiny_model, {"total_steps": 5, **{f"optimizer.{key}": v for key, v in optimizer.items()}})
    steps = [random_samples(seed) for seed in range(5)]
    result = trainers(world_size).call("update", config, steps)

    model = reference.load_model(tiny_model)
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    lrs = [0.5e-3, 1e-3, 1e-3, 2e-3 / 3, 1e-3 / 3]
    for samples, lr, metrics in zip(steps, lrs, result["metrics"], strict=True):
        expected = reference.gradient(model, samples, Objective(LIMIT))
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or float("inf")))
        assert norm > 0.2  # clipping acts
        adamw.param_groups[0]["lr"] = lr
        adamw.step()
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
        assert metrics["loss"] == pytest.approx(expected.loss, rel=1e-4)
        assert metrics["lr"] == pytest.approx(lr)
    error = largest_error(result["weights"], {n: p.detach() for n, p in model.named_parameters()})
    print(f"largest relative L2 error of the weights {error:.2e}")
    assert error <= TOLERANCE
    moved = largest_error(result["weights"], result["records"][0]["weights"])
    assert moved > 100 * TOLERANCE


def test_bfloat16_gradients_accumulate_in_float32(tiny_model: Path, trainers: Trainers) -> None:
    dtypes = trainers(1).call("accumulation_dtypes", make_config(tiny_model, {"model.dtype": "bfloat16"}))
    assert dtypes == {"weights": "torch.bfloat16", "buffers": "torch.float32", "gradient": "torch.float32"}


@both_world_sizes
def test_many_small_microbatches_are_not_lost_beside_a_large_one(
    world_size: int, tiny_model: Path, trainers: Trainers
) -> None:
    config = make_config(tiny_model, {"model.dtype": "bfloat16", "trainer.tokens_per_microbatch": 16})
    samples = [replace(sample, advantage=1.0) for sample in random_samples(num_groups=8, group_size=8)]
    largest = max(range(len(samples)), key=lambda i: samples[i].prompt_len + samples[i].completion_len)
    samples[largest] = replace(samples[largest], advantage=3e3)  # the longest micro-batch is the first
    gradient = {
        name: trainers(world_size).call("gradient", config, part)["gradient"]
        for name, part in {
            "all": samples,
            "large": with_zero_advantages(samples, set(range(len(samples))) - {largest}),
            "small": with_zero_advantages(samples, {largest}),
        }.items()
    }
    for name, large in gradient["large"].items():
        small = gradient["small"][name]
        # bfloat16 resolves 2^-9 of a value: added one by one there, these would vanish
        assert np.linalg.norm(small) / len(samples) < np.linalg.norm(large) * 2**-9
        assert relative_error(gradient["all"][name] - large, small) < 1e-3


@pytest.mark.parametrize(
    ("dtype", "grad_clip", "sub_group_size", "recompute"),
    [
        ("float32", 0.2, 10**9, 0.0),
        ("bfloat16", 0.2, 10**5, 0.5),  # AdamW steps four times, and one layer of two recomputes
        ("bfloat16", 1e3, 10**9, 0.0),  # above every norm
        ("float32", 0.0, 10**5, 0.0),
    ],
)
def test_one_rank_without_an_exchange_has_the_bits_of_one_with_it(
    dtype: str, grad_clip: float, sub_group_size: int, recompute: float, tiny_model: Path, trainers: Trainers
) -> None:
    options = {"model.dtype": dtype, "trainer.tokens_per_microbatch": 32, "optimizer.lr": 1e-2, "total_steps": 3}
    options |= {"optimizer.grad_clip": grad_clip, "trainer.gradient_checkpointing": recompute}
    # Two optimizer steps in each iteration: the second one's old logprobs are those of a pass without gradients.
    config = make_config(tiny_model, options | {"trainer.completions_per_update": 8})
    steps = [random_samples(seed, num_groups=4) for seed in range(3)]
    # The gradients of the second iteration are not finite: they are left out, and the third starts anew.
    ours, theirs = (
        trainers(1).call("update", config, steps, {1}, exchange, sub_group_size) for exchange in (False, True)
    )
    assert len(ours["records"]) == len(theirs["records"]) == 6 and len(ours["forwards"]) > 12
    for mine, other in zip(ours["records"], theirs["records"], strict=True):
        assert mine["loss"] == other["loss"] or np.isnan(mine["loss"])
        assert mine["grad_norm"] == other["grad_norm"]
        for name, gradient in mine["gradient"].items():
            np.testing.assert_array_equal(gradient, other["gradient"][name])
    assert [np.isinf(record["grad_norm"]) for record in ours["records"]] == [False, False, True, True, False, False]
    assert 0.2 < ours["records"][0]["grad_norm"] < 1e3
    for name, weight in ours["weights"].items():
        np.testing.assert_array_equal(weight, theirs["weights"][name])
        assert not np.array_equal(weight, ours["records"][0]["weights"][name])
    for mine, other in zip(ours["metrics"], theirs["metrics"], strict=True):
        np.testing.assert_equal(mine, other)  # NaN is NaN


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_one_rank_weights_stay_gathered_and_no_hook_is_left(
    dtype: str, tiny_model: Path, trainers: Trainers
) -> None:
    config = make_config(tiny_model, {"model.dtype": dtype, "total_steps": 3})
    steps = [random_samples(seed) for seed in range(3)]  # the last one is skipped
    assert trainers(1).call("gathered_for_good", config, steps) == (0, True)
