"""Advantages against hand-computed numbers; the paper's traps are in `test_traps`."""

import math

import pytest
import torch

from drgrpo.advantage import compute_advantages, overlong_penalty, shape_rewards

MIXED = torch.tensor([1.0, 0.0, 0.0, 0.0])
ONE_GROUP = torch.zeros(4, dtype=torch.int64)


def assert_values(actual: torch.Tensor, expected: list[float], tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=actual.dtype), rtol=0, atol=tolerance)


def test_groups_of_unequal_size_use_the_samples_that_exist():
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    group_ids = torch.tensor([70, 3, 70, 3, 3, -5, 70])
    third = 1 / 3
    assert_values(compute_advantages(rewards, group_ids), [third, -2 * third, -2 * third, third, third, 0.0, third])


def test_rloo_is_the_distance_to_the_mean_of_the_others():
    rewards = torch.tensor([0.3, 1.0, 0.2, 0.7, 0.9])
    group_ids = torch.tensor([0, 1, 0, 0, 1])
    expected = [0.3 - (0.2 + 0.7) / 2, 1.0 - 0.9, 0.2 - (0.3 + 0.7) / 2, 0.7 - (0.3 + 0.2) / 2, 0.9 - 1.0]
    assert_values(compute_advantages(rewards, group_ids, leave_one_out=True), expected)


def test_rloo_is_g_over_g_minus_one_times_dr_grpo():
    rewards = torch.tensor([0.3, 1.0, 0.2, 0.7], dtype=torch.float64)
    plain = compute_advantages(rewards, ONE_GROUP)
    torch.testing.assert_close(compute_advantages(rewards, ONE_GROUP, leave_one_out=True), plain * 4 / 3)


def test_maxrl_divides_by_the_mean():
    options = {"std_level": "group", "normalize_by": "mean"}
    assert_values(compute_advantages(MIXED, ONE_GROUP, **options), [3.0, -1.0, -1.0, -1.0])
    assert_values(compute_advantages(torch.tensor([1.0, 1.0, 0.0, 0.0]), ONE_GROUP, **options), [1.0, 1.0, -1.0, -1.0])
    assert compute_advantages(torch.zeros(4), ONE_GROUP, **options).tolist() == [0.0] * 4


def test_maxrl_refuses_a_negative_mean_because_it_turns_the_signs_round():
    with pytest.raises(ValueError, match=r"mean of 0 or more, got -0\.75"):
        compute_advantages(torch.tensor([-1.0, -1.0, -1.0, 0.0]), ONE_GROUP, std_level="group", normalize_by="mean")


def test_batch_mean_and_batch_std_ignore_the_groups():
    # AReaL's masked batch/batch example, its five unmasked numbers taken as five rewards
    rewards = torch.tensor([1.0, 2.0, 4.0, 5.0, 6.0])
    group_ids = torch.tensor([0, 0, 1, 1, 1])
    normalised = compute_advantages(rewards, group_ids, mean_level="batch", std_level="batch")
    assert_values(normalised, [-1.2538, -0.7716, 0.1929, 0.6751, 1.1574], tolerance=1e-4)
    left_out = compute_advantages(rewards, group_ids, mean_level="batch", leave_one_out=True)
    assert_values(left_out, [-3.25, -2.0, 0.5, 1.75, 3.0])


def test_group_mean_and_group_std_match_areal():
    advantages = compute_advantages(
        torch.arange(1, 13), torch.tensor([0] * 6 + [1] * 6), mean_level="group", std_level="group"
    )
    half = [-1.3363, -0.8018, -0.2673, 0.2673, 0.8018, 1.3363]
    assert_values(advantages, half + half, tolerance=1e-4)


def test_leave_one_out_of_two_matches_areal():
    advantages = compute_advantages(torch.tensor([1.0, 4.0]), torch.tensor([0, 0]), leave_one_out=True)
    assert advantages.tolist() == [-3.0, 3.0]


def test_group_mean_with_batch_std_keeps_the_weights_between_groups():
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    group_ids = torch.tensor([0] * 4 + [1] * 4)
    # five ones of eight: mean .625, unbiased variance (5·.375² + 3·.625²)/7 = 1.875/7
    std = math.sqrt(1.875 / 7)
    expected = [0.75 / std, -0.25 / std, -0.25 / std, -0.25 / std, 0.0, 0.0, 0.0, 0.0]
    assert_values(compute_advantages(rewards, group_ids, std_level="batch"), expected)


def test_no_mean_keeps_the_rewards():
    assert compute_advantages(MIXED, ONE_GROUP, mean_level="none").tolist() == [1.0, 0.0, 0.0, 0.0]
    scaled = compute_advantages(MIXED, ONE_GROUP, mean_level="none", std_level="group")
    assert_values(scaled, [2.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("std_level", ["none", "group", "batch"])
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_an_all_equal_group_is_exactly_zero_even_with_awkward_floats(std_level: str, leave_one_out: bool):
    rewards = torch.tensor([0.1, 0.1, 0.1, 0.7, 0.0, 0.3], dtype=torch.float64)
    assert rewards[:3].sum() / 3 != 0.1  # float noise would leak through the mean
    group_ids = torch.tensor([0, 0, 0, 1, 1, 1])
    advantages = compute_advantages(rewards, group_ids, std_level=std_level, leave_one_out=leave_one_out)
    assert advantages[:3].tolist() == [0.0, 0.0, 0.0]
    assert (advantages[3:] != 0).all()


def test_an_all_equal_batch_is_exactly_zero_under_a_batch_mean():
    rewards = torch.full((3,), 0.1, dtype=torch.float64)
    advantages = compute_advantages(rewards, torch.tensor([0, 1, 2]), mean_level="batch", std_level="batch")
    assert advantages.tolist() == [0.0, 0.0, 0.0]


def test_an_all_equal_group_keeps_its_distance_to_a_batch_mean():
    rewards = torch.tensor([1.0, 1.0, 0.0, 0.0])
    advantages = compute_advantages(rewards, torch.tensor([0, 0, 1, 1]), mean_level="batch")
    assert advantages.tolist() == [0.5, 0.5, -0.5, -0.5]


@pytest.mark.parametrize("mean_level", ["batch", "none"])
def test_a_group_std_of_zero_gives_zero_and_not_the_reward_over_epsilon(mean_level: str):
    rewards = torch.tensor([5.0, 5.0, 1.0, 0.0])
    advantages = compute_advantages(rewards, torch.tensor([0, 0, 1, 1]), mean_level=mean_level, std_level="group")
    assert advantages[:2].tolist() == [0.0, 0.0]
    assert advantages.abs().max() < 10


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_a_group_of_one_is_zero(leave_one_out: bool):
    rewards, group_ids = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([4, 4, 9])
    for std_level in ("none", "group", "batch"):
        advantages = compute_advantages(rewards, group_ids, std_level=std_level, leave_one_out=leave_one_out)
        assert advantages[2] == 0.0 and advantages[0] == -advantages[1] > 0.4


def test_non_finite_rewards_are_refused_by_index():
    with pytest.raises(ValueError, match=r"indices \[1, 3\]"):
        compute_advantages(torch.tensor([0.0, math.nan, 1.0, math.inf]), ONE_GROUP)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean_level": "token"}, "mean_level is 'token'"),
        ({"std_level": "null"}, "std_level is 'null'"),
        ({"normalize_by": "max"}, "normalize_by is 'max'"),
        ({"mean_level": "none", "leave_one_out": True}, "leave_one_out"),
        ({"normalize_by": "mean"}, "std_level='group'"),
    ],
)
def test_contradictory_options_are_refused_with_a_remedy(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        compute_advantages(MIXED, ONE_GROUP, **options)


def test_wrong_shapes_and_kinds_are_refused():
    with pytest.raises(ValueError, match=r"\[4\] and \[3\]"):
        compute_advantages(MIXED, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="must be integers"):
        compute_advantages(MIXED, torch.zeros(4))


def test_the_dtype_of_floating_rewards_is_kept_and_others_become_float32():
    assert compute_advantages(MIXED.double(), ONE_GROUP).dtype == torch.float64
    assert compute_advantages(MIXED.long(), ONE_GROUP).dtype == torch.float32
    assert compute_advantages(torch.zeros(0), torch.zeros(0, dtype=torch.int32)).tolist() == []


def test_rewards_are_shifted_then_scaled_then_clipped():
    rewards = torch.tensor([0.0, 1.0, 3.0])
    assert shape_rewards(rewards, bias=-0.5, scaling=10.0).tolist() == [-5.0, 5.0, 25.0]
    assert shape_rewards(rewards, bias=-0.5, scaling=10.0, clip=20.0).tolist() == [-5.0, 5.0, 20.0]
    assert shape_rewards(rewards, bias=-0.5, scaling=-10.0, clip=4.0).tolist() == [4.0, -4.0, -4.0]
    assert shape_rewards(rewards).tolist() == [0.0, 1.0, 3.0]


def test_the_overlong_penalty_grows_linearly_over_the_buffer():
    num_tokens = torch.tensor([1, 80, 81, 90, 99, 100, 130])
    penalties = overlong_penalty(num_tokens, max_completion_tokens=100, buffer_tokens=20, penalty=2.0)
    assert_values(penalties, [0.0, 0.0, -0.1, -1.0, -1.9, -2.0, -2.0])


@pytest.mark.parametrize("buffer_tokens", [0, 101])
def test_an_overlong_buffer_outside_the_limit_is_refused(buffer_tokens: int):
    with pytest.raises(ValueError, match="buffer_tokens"):
        overlong_penalty(torch.tensor([1]), max_completion_tokens=100, buffer_tokens=buffer_tokens, penalty=1.0)
