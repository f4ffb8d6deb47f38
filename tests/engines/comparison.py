"""Comparison of a trainer's gradient with the reference's, shared by the tests of gradients."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.engines import reference
from tests.engines.conftest import TrainerRanks
from tests.engines.reference import largest_error
from tests.engines.samples import random_samples

TOLERANCE = 1e-5
SAMPLES = random_samples()
Trainers = Callable[[int], TrainerRanks]

both_world_sizes = pytest.mark.parametrize("world_size", [1, 2])


def assert_equal_gradients(result: dict[str, Any], expected: reference.Gradient) -> None:
    """Loss, and every parameter's gradient, within the tolerance of the reference."""
    assert result["loss"] == pytest.approx(expected.loss, rel=TOLERANCE, abs=1e-8)
    error = largest_error(result["gradient"], expected.by_name)
    print(f"largest relative L2 error {error:.2e}")
    assert error <= TOLERANCE
