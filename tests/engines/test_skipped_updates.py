"""A gradient that is not finite: the optimizer step is skipped and counted, and too many in a row end the run."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drgrpo.trainer.batch import Sample
from tests.engines.comparison import Trainers, both_world_sizes
from tests.engines.conftest import make_config
from tests.engines.samples import random_samples

pytestmark = pytest.mark.engine


CORRECTED = {"loss.correction": "token_tis", "rollout.sampler_logprobs": True}


def spoiled(samples: list[Sample], advantage: float) -> list[Sample]:
    """The samples with one advantage that is no number to train on."""
    return [replace(samples[0], advantage=advantage), *samples[1:]]


def sampled(samples: list[Sample], *, num_nan: int = 0) -> list[Sample]:
    """The samples with logprobs of a sampler, of which the first `num_nan` of the last sample are no numbers."""
    given = [replace(sample, sampler_logprobs=[-3.0] * sample.completion_len) for sample in samples]
    logprobs = [math.nan] * num_nan + [-3.0] * (given[-1].completion_len - num_nan)
    return [*given[:-1], replace(given[-1], sampler_logprobs=logprobs)]


def bad_step(samples: list[Sample], case: str) -> list[Sample]:
    """The samples of the step that is to be skipped; with `trainer` it is the trainer that spoils them."""
    return {
        "infinite advantage": spoiled(samples, math.inf),
        "nan advantage": spoiled(samples, math.nan),
        "trainer": samples,
        "sampler": sampled(samples, num_nan=1),
    }[case]


@both_world_sizes
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", ["infinite advantage", "nan advantage", "trainer", "sampler"])
def test_a_step_whose_gradient_is_not_finite_changes_neither_weights_nor_moments(
    world_size: int, dtype: str, case: str, tiny_model: Path, trainers: Trainers
) -> None:
    options = {"optimizer.lr": 1e-3, "total_steps": 3, "model.dtype": dtype}
    config = make_config(tiny_model, options | (CORRECTED if case == "sampler" else {}))
    good = [sampled(random_samples(seed)) for seed in (0, 1)]
    steps = [good[0], bad_step(random_samples(2), case), good[1]]
    skipping = trainers(world_size).call("update", config, steps, {1} if case == "trainer" else ())
    plain = trainers(world_size).call("update", config, good)
    assert [metrics["skipped_updates"] for metrics in skipping["metrics"]] == [0.0, 1.0, 0.0]
    assert not np.isfinite(skipping["metrics"][1]["grad_norm"])
    for name, weights in plain["weights"].items():
        before, after = (skipping["records"][index]["weights"][name] for index in (1, 2))
        assert np.array_equal(before, after), name
        # The moments are as they were too, or the next step would differ.
        assert np.array_equal(skipping["weights"][name], weights), name
        assert not np.array_equal(before, skipping["weights"][name]), name


def test_too_many_in_a_row_end_the_run_and_fewer_do_not(tiny_model: Path, trainers: Trainers) -> None:
    config = make_config(tiny_model, {"trainer.max_skipped_updates": 1, "total_steps": 5})
    good, bad = random_samples(0), spoiled(random_samples(1), float("inf"))
    between = trainers(1).call("update", config, [bad, good, bad])
    assert [metrics["skipped_updates"] for metrics in between["metrics"]] == [1.0, 0.0, 1.0]
    with pytest.raises(Exception, match="2 optimizer steps in a row was not finite"):
        trainers(1).call("update", config, [good, bad, bad])


@both_world_sizes
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sampler_logprob_that_is_no_number_does_nothing_but_be_counted_where_nothing_is_corrected(
    world_size: int, dtype: str, tiny_model: Path, trainers: Trainers
) -> None:
    config = make_config(tiny_model, {"optimizer.lr": 1e-3, "model.dtype": dtype, "rollout.sampler_logprobs": True})
    samples = random_samples()
    assert samples[-1].completion_len > 2
    invalid, clean = (
        trainers(world_size).call("update", config, [sampled(samples, num_nan=num_nan)]) for num_nan in (2, 0)
    )
    assert all(np.array_equal(weights, invalid["weights"][name]) for name, weights in clean["weights"].items())
    (found,), (expected,) = invalid["metrics"], clean["metrics"]
    assert (found["invalid_sampler_logprobs"], expected["invalid_sampler_logprobs"]) == (2.0, 0.0)
    mismatch = {key for key in found if key.startswith("mismatch")}
    assert len(mismatch) == 4 and all(np.isfinite(found[key]) and found[key] != 0 for key in mismatch)
    same = set(expected) - mismatch - {"invalid_sampler_logprobs"}
    assert {key: found[key] for key in same} == {key: expected[key] for key in same}
    assert found["skipped_updates"] == 0.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_weight_that_is_no_number_is_never_trained_on(
    dtype: str, tiny_model: Path, tmp_path: Path, trainers: Trainers
) -> None:
    from safetensors.numpy import load_file, save_file

    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][0] = math.nan
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    options = {"optimizer.lr": 1e-3, "model.dtype": dtype, "trainer.max_skipped_updates": 2, "total_steps": 5}
    steps = [random_samples(seed) for seed in range(3)]
    result = trainers(1).call("update", make_config(model, options), steps[:2])
    assert [metrics["skipped_updates"] for metrics in result["metrics"]] == [1.0, 1.0]
    for name, weights in result["records"][0]["weights"].items():
        assert np.array_equal(weights, result["weights"][name], equal_nan=True), name
    with pytest.raises(Exception, match="3 optimizer steps in a row was not finite"):
        trainers(1).call("update", make_config(model, options), steps)
