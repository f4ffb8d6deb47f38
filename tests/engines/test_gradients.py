"""The gradient of an optimizer step on the real ZeRO-3 engine, before clipping, against the slow reference."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drgrpo.trainer.batch import Sample
from tests.engines import reference
from tests.engines.comparison import SAMPLES, TOLERANCE, Trainers, assert_equal_gradients, both_world_sizes
from tests.engines.conftest import make_config
from tests.engines.reference import Objective, largest_error
from tests.engines.samples import LIMIT, with_zero_advantages

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def expected(tiny_model: Path) -> reference.Gradient:
    """The reference's gradient of Dr. GRPO for `SAMPLES` at the initial weights."""
    return reference.gradient(reference.load_model(tiny_model), SAMPLES, Objective(LIMIT))


@both_world_sizes
def test_the_gradient_of_a_step_equals_the_reference(
    world_size: int, tiny_model: Path, trainers: Trainers, expected: reference.Gradient
) -> None:
    assert_equal_gradients(trainers(world_size).call("gradient", make_config(tiny_model), SAMPLES), expected)


@both_world_sizes
def test_a_head_of_its_own_has_a_gradient_of_its_own(world_size: int, untied_model: Path, trainers: Trainers) -> None:
    expected = reference.gradient(reference.load_model(untied_model), SAMPLES, Objective(LIMIT))
    assert "lm_head.weight" in expected.by_name
    assert_equal_gradients(trainers(world_size).call("gradient", make_config(untied_model), SAMPLES), expected)


@both_world_sizes
def test_biases_of_queries_keys_and_values_have_their_gradient(
    world_size: int, biased_model: Path, trainers: Trainers
) -> None:
    expected = reference.gradient(reference.load_model(biased_model), SAMPLES, Objective(LIMIT))
    biases = {name: gradient.norm() for name, gradient in expected.by_name.items() if name.endswith(".bias")}
    assert len(biases) == 6 and all(norm > 0 for norm in biases.values())
    assert_equal_gradients(trainers(world_size).call("gradient", make_config(biased_model), SAMPLES), expected)


def test_each_of_two_ranks_stores_half_of_the_weights(tiny_model: Path, trainers: Trainers) -> None:
    stored, persistent = trainers(2).call("partitioned_shares", make_config(tiny_model))
    assert stored == pytest.approx(0.5)
    assert persistent < 0.01  # or nothing would ever be gathered in these tests


@both_world_sizes
@pytest.mark.parametrize(
    "options",
    [
        {"trainer.share_prompts": False},
        {"trainer.tokens_per_microbatch": 16},
        {"trainer.tokens_per_microbatch": 64},
        {"trainer.tokens_per_microbatch": 64, "trainer.share_prompts": False},
        {"trainer.logprob_chunk_tokens": 1},
        {"trainer.logprob_chunk_tokens": 7},
        {"trainer.gradient_checkpointing": 1},
        {"trainer.gradient_checkpointing": 0.5},
        {"trainer.gradient_checkpointing": 1, "trainer.tokens_per_microbatch": 64},
    ],
    ids=lambda options: ",".join(f"{key.split('.')[1]}={value}" for key, value in options.items()),
)
def test_the_gradient_does_not_depend_on_how_it_is_computed(
    world_size: int, options: dict[str, Any], tiny_model: Path, trainers: Trainers, expected: reference.Gradient
) -> None:
    result = trainers(world_size).call("gradient", make_config(tiny_model, options), SAMPLES)
    assert_equal_gradients(result, expected)
    plain = trainers(1).call("gradient", make_config(tiny_model), SAMPLES)
    assert largest_error(result["gradient"], plain["gradient"]) <= TOLERANCE


@both_world_sizes
def test_the_order_of_samples_does_not_matter(
    world_size: int, tiny_model: Path, trainers: Trainers, expected: reference.Gradient
) -> None:
    shuffled = random.Random(1).sample(SAMPLES, len(SAMPLES))
    config = make_config(tiny_model, {"trainer.tokens_per_microbatch": 64})
    assert_equal_gradients(trainers(world_size).call("gradient", config, shuffled), expected)


@both_world_sizes
def test_samples_without_advantage_are_skipped_but_counted(
    world_size: int, tiny_model: Path, trainers: Trainers
) -> None:
    samples = with_zero_advantages(SAMPLES, {1, 4, 5, 6, 7})
    model = reference.load_model(tiny_model)
    expected = reference.gradient(model, samples, Objective(LIMIT))
    assert_equal_gradients(trainers(world_size).call("gradient", make_config(tiny_model), samples), expected)

    kept = reference.gradient(model, [s for s in samples if s.advantage], Objective(LIMIT))
    scale = {name: gradient * 7 / 12 for name, gradient in kept.by_name.items()}
    assert largest_error(expected.by_name, scale) <= TOLERANCE  # N stays 12, not 7
    result = trainers(world_size).call("update", make_config(tiny_model), [samples])
    assert result["metrics"][0]["trained_sequences"] == 7


@both_world_sizes
def test_an_empty_completion_counts_in_n_alone(world_size: int, tiny_model: Path, trainers: Trainers) -> None:
    samples = [*SAMPLES[:7], Sample(1, SAMPLES[4].prompt_ids, [], 0.5)]
    expected = reference.gradient(reference.load_model(tiny_model), samples, Objective(LIMIT))
    assert_equal_gradients(trainers(world_size).call("gradient", make_config(tiny_model), samples), expected)


def test_a_rank_without_samples_takes_part(tiny_model: Path, trainers: Trainers) -> None:
    expected = reference.gradient(reference.load_model(tiny_model), SAMPLES[:1], Objective(LIMIT))
    assert_equal_gradients(trainers(2).call("gradient", make_config(tiny_model), SAMPLES[:1]), expected)


@both_world_sizes
def test_a_step_without_any_advantage_has_no_gradient(world_size: int, tiny_model: Path, trainers: Trainers) -> None:
    samples = with_zero_advantages(SAMPLES, set(range(len(SAMPLES))))
    result = trainers(world_size).call("gradient", make_config(tiny_model), samples)
    assert result["loss"] == 0
    assert all(np.all(gradient == 0) for gradient in result["gradient"].values())


@both_world_sizes
@pytest.mark.parametrize(
    ("options", "objective"),
    [
        ({"loss.aggregation": "sequence_mean"}, {"aggregation": "sequence_mean"}),
        ({"loss.aggregation": "token_mean"}, {"aggregation": "token_mean"}),
        ({"rollout.temperature": 0.7}, {"temperature": 0.7}),
        ({"loss.entropy_coef": 0.3}, {"entropy_coef": 0.3}),
        (
            {"loss.entropy_coef": 0.3, "rollout.temperature": 1.4, "loss.aggregation": "token_mean"},
            {"entropy_coef": 0.3, "temperature": 1.4, "aggregation": "token_mean"},
        ),
    ],
    ids=["sequence_mean", "token_mean", "temperature", "entropy", "entropy_temperature_token_mean"],
)
def test_options_of_the_loss_reach_the_gradient(
    world_size: int, options: dict[str, Any], objective: dict[str, Any], tiny_model: Path, trainers: Trainers
) -> None:
    samples = with_zero_advantages(SAMPLES, {2, 9})
    expected = reference.gradient(reference.load_model(tiny_model), samples, Objective(LIMIT, **objective))
    config = make_config(tiny_model, {"trainer.tokens_per_microbatch": 64, **options})
    assert_equal_gradients(trainers(world_size).call("gradient", config, samples), expected)


@both_world_sizes
def test_sampler_logprobs_weight_their_own_tokens(world_size: int, tiny_model: Path, trainers: Trainers) -> None:
    model, rng = reference.load_model(tiny_model), random.Random(2)
    samples = [
        replace(
            sample, sampler_logprobs=[float(p) + rng.gauss(0, 1) for p in reference.token_logprobs(model, sample, 1)]
        )
        for sample in SAMPLES
    ]
    config = make_config(
        tiny_model, {"loss.correction": "token_tis", "loss.correction_cap": 1.5, "trainer.tokens_per_microbatch": 64}
    )
    expected = reference.gradient(model, samples, Objective(LIMIT, importance_cap=1.5))
    assert_equal_gradients(trainers(world_size).call("gradient", config, samples), expected)


def test_a_correction_without_sampler_logprobs_is_an_error(tiny_model: Path, trainers: Trainers) -> None:
    with pytest.raises(ValueError, match="needs sampler_logprobs"):
        trainers(1).call("gradient", make_config(tiny_model, {"loss.correction": "token_tis"}), SAMPLES)
