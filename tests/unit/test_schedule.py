"""Learning rates in hand numbers."""

import pytest

from drgrpo.schedule import learning_rate


def rates(steps: list[int], schedule: str, warmup_steps: int = 0, min_lr_ratio: float = 0.0) -> list[float]:
    options = {"peak": 2.0, "warmup_steps": warmup_steps, "total_steps": 10, "min_lr_ratio": min_lr_ratio}
    return [learning_rate(step, schedule=schedule, **options) for step in steps]


def test_constant_is_the_peak_from_the_first_step_on():
    assert rates([0, 5, 9, 50], "constant") == [2.0] * 4


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warm_up_moves_at_the_first_step_and_ends_at_the_peak(schedule: str):
    assert rates([0, 1, 2, 3], schedule, warmup_steps=4) == [0.5, 1.0, 1.5, 2.0]


def test_linear_falls_from_the_end_of_the_warm_up_to_the_floor():
    assert rates([2, 6, 10, 99], "linear", warmup_steps=2) == pytest.approx([2.0, 1.0, 0.0, 0.0])
    assert rates([0, 5, 10], "linear", min_lr_ratio=0.1) == pytest.approx([2.0, 1.1, 0.2])


def test_cosine_falls_as_half_a_wave():
    # a quarter of the way: (1 + cos 45°)/2 = 0.853553
    assert rates([2, 4, 6, 10, 99], "cosine", warmup_steps=2) == pytest.approx([2.0, 1.707107, 1.0, 0.0, 0.0], abs=1e-6)
    assert rates([5, 10], "cosine", min_lr_ratio=0.5) == pytest.approx([1.5, 1.0])


def test_a_run_that_is_all_warm_up_never_divides_by_zero():
    assert rates([9, 10, 11], "cosine", warmup_steps=10) == pytest.approx([2.0, 2.0, 0.0])


def test_a_peak_of_zero_stays_zero():
    assert learning_rate(3, peak=0.0, schedule="cosine", warmup_steps=2, total_steps=9, min_lr_ratio=0.1) == 0.0


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="'step'"):
        rates([0], "step")
