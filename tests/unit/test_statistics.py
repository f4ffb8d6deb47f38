"""Bootstrap intervals against exact small cases and the normal approximation; pass@k against counting."""

import math
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest

from drgrpo import statistics
from drgrpo.statistics import bootstrap_interval, paired_interval, pass_at_k


def test_two_problems_have_a_bootstrap_distribution_one_can_write_down():
    # resampled means of [0, 1] are 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4
    assert bootstrap_interval([0, 1], confidence=0.95) == (0.5, 0.0, 1.0)
    assert bootstrap_interval([0, 1], confidence=0.40) == (0.5, 0.5, 0.5)


def test_the_interval_of_many_problems_is_the_normal_one():
    values = np.repeat([0.0, 1.0], [600, 400])
    mean, low, high = bootstrap_interval(values)
    half = 1.96 * math.sqrt(0.4 * 0.6 / 1000)
    assert mean == pytest.approx(0.4)
    assert (low, high) == pytest.approx((0.4 - half, 0.4 + half), abs=0.002)


def test_confidence_widens_the_interval():
    values = np.repeat([0.0, 1.0], [60, 40])
    _, low_80, high_80 = bootstrap_interval(values, confidence=0.8)
    _, low_99, high_99 = bootstrap_interval(values, confidence=0.99)
    assert low_99 < low_80 < 0.4 < high_80 < high_99


def test_equal_values_have_an_interval_of_no_width():
    assert bootstrap_interval([0.25] * 7) == (0.25, 0.25, 0.25)
    assert bootstrap_interval([3.0]) == (3.0, 3.0, 3.0)


def test_a_seed_makes_the_interval_reproducible_and_chunks_do_not_change_its_meaning(monkeypatch: pytest.MonkeyPatch):
    values = np.random.default_rng(1).random(50)
    first = bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) == first
    assert bootstrap_interval(values, seed=4) != first
    monkeypatch.setattr(statistics, "CHUNK_INDICES", 730)  # 14 resamples at once, with a remainder
    assert bootstrap_interval(values, seed=3) == pytest.approx(first, abs=0.005)


def test_pairing_removes_the_spread_between_problems():
    rng = np.random.default_rng(0)
    before = np.repeat([0.0, 1.0], 100)
    after = before + 0.05 + rng.normal(0, 0.01, size=200)
    mean, low, high = paired_interval(before, after)
    half = 1.96 * np.std(after - before) / math.sqrt(200)
    assert mean == pytest.approx(np.mean(after) - np.mean(before))
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=2e-4)
    assert low > 0.04


def test_no_change_gives_an_interval_around_zero():
    assert paired_interval([0.0, 1.0, 0.5], [0.0, 1.0, 0.5]) == (0.0, 0.0, 0.0)
    _, low, high = paired_interval([0.0, 1.0, 0.0, 1.0] * 20, [1.0, 0.0, 1.0, 0.0] * 20)
    assert low < 0 < high


def test_input_that_has_no_interval_is_refused():
    for values in ([], [[1.0]], [1.0, math.nan]):
        with pytest.raises(ValueError, match="finite numbers"):
            bootstrap_interval(values)
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_interval([1.0], confidence=95)
    with pytest.raises(ValueError, match="same problems"):
        paired_interval([1.0, 2.0], [1.0])


def test_pass_at_k_counts_the_subsets_with_a_right_sample():
    for num_correct in range(6):
        right = [i < num_correct for i in range(5)]
        for k in range(1, 6):
            subsets = list(combinations(right, k))
            assert pass_at_k(5, num_correct, k) == pytest.approx(sum(any(s) for s in subsets) / len(subsets))


def test_pass_at_k_in_hand_numbers():
    assert pass_at_k(5, 2, 2) == pytest.approx(0.7)
    assert pass_at_k(4, 1, 1) == pytest.approx(0.25)
    assert pass_at_k(4, 0, 4) == 0.0
    assert pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 5), (4, 5, 1), (4, -1, 1), (4, 1, 0)])
def test_impossible_pass_at_k_is_refused(n: int, c: int, k: int):
    with pytest.raises(ValueError, match="need 1 <= k <= n"):
        pass_at_k(n, c, k)


def test_statistics_and_schedule_import_no_torch():
    code = "import sys, drgrpo.statistics, drgrpo.schedule; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
