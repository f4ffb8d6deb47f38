"""A gradient that is not finite: the optimizer step is skipped and counted, and too many in a row end the run."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drgrpo.trainer.batch import Sample
from tests.engines.comparison import Trainers, both_world_sizes
from tests.engines.conftest import make_config
from tests.engines.samples import random_samples

pytestmark = pytest.mark.engine


def spoiled(samples: list[Sample], advantage: float) -> list[Sample]:
    """The samples with one advantage that is no number to train on."""
    return [replace(samples[0], advantage=advantage), *samples[1:]]


@both_world_sizes
@pytest.mark.parametrize("advantage", [float("inf"), float("nan")])
def test_a_step_whose_gradient_is_not_finite_changes_neither_weights_nor_moments(
    world_size: int, advantage: float, tiny_model: Path, trainers: Trainers
) -> None:
    config = make_config(tiny_model, {"optimizer.lr": 1e-3, "total_steps": 3})
    good = [random_samples(seed) for seed in (0, 1)]
    skipping = trainers(world_size).call("update", config, [good[0], spoiled(random_samples(2), advantage), good[1]])
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
