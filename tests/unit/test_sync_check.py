"""Agreement of samplers and trainer on fixed tokens."""

import math

from drgrpo.sync_check import logprob_differences

TRAINER = [[-1.0, -2.0], [-3.0]]


def test_each_difference_is_that_of_the_sampler_that_is_worst_in_it():
    samplers = [[[-1.0, -2.0], [-3.75]], [[-0.5, -2.5], [-3.5]]]
    found = logprob_differences(TRAINER, samplers)
    assert found == {"sync/mean_abs_logprob_diff": 0.5, "sync/max_abs_logprob_diff": 0.75}
    assert logprob_differences(TRAINER, samplers[:1])["sync/mean_abs_logprob_diff"] == 0.25


def test_a_sampler_that_lost_its_numbers_is_not_hidden_by_another():
    for samplers in ([TRAINER, [[-1.0, math.nan], [-3.0]]], [[[math.nan, -2.0], [-3.0]], TRAINER]):
        assert all(math.isnan(value) for value in logprob_differences(TRAINER, samplers).values())
