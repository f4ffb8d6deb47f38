"""Weights against the sampler mismatch, and its metrics, in hand numbers."""

import math

import pytest
import torch

from drgrpo.correction import correction_weights, mismatch_metrics


def logs(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


# ratios old/sampler: 3, 1/3, 1 | 1.5, 1.5, masked | 0.5, 0.5, 0.5
OLD = logs([[0.9, 0.3, 0.5], [0.6, 0.6, 0.9], [0.2, 0.3, 0.4]])
SAMPLER = logs([[0.3, 0.9, 0.5], [0.4, 0.4, 0.1], [0.4, 0.6, 0.8]])
MASK = torch.tensor([[True, True, True], [True, True, False], [True, True, True]])
THIRD = 1 / 3

CASES = {
    "off": ([[1, 1, 1], [1, 1, 1], [1, 1, 1]], 0),
    "token_tis": ([[2, THIRD, 1], [1.5, 1.5, 1], [0.5, 0.5, 0.5]], 1),
    "token_mask": ([[0, 0, 1], [1.5, 1.5, 1], [0.5, 0.5, 0.5]], 2),
    "sequence_tis": ([[1, 1, 1], [2, 2, 2], [0.125, 0.125, 0.125]], 2),
    "sequence_mask": ([[1, 1, 1], [0, 0, 0], [0, 0, 0]], 5),
}


@pytest.mark.parametrize("correction", CASES)
def test_every_correction_in_hand_numbers(correction: str):
    expected, num_cut = CASES[correction]
    weights, cut = correction_weights(OLD, SAMPLER, MASK, correction=correction, cap=2.000001)
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-5)
    assert cut.sum() == num_cut
    assert not (cut & ~MASK).any()


def test_a_sequence_of_opposite_mismatches_is_kept_whole_where_its_tokens_are_not():
    # 3 · 1/3 · 1 = 1: nothing to correct for the sequence, two tokens outside [1/2, 2]
    weights, _ = correction_weights(OLD, SAMPLER, MASK, correction="sequence_mask", cap=2.0)
    assert weights[0].tolist() == pytest.approx([1.0, 1.0, 1.0])


@pytest.mark.parametrize("correction", ["token_mask", "sequence_mask", "token_tis", "sequence_tis"])
def test_a_ratio_exactly_at_the_cap_is_kept(correction: str):
    weights, cut = correction_weights(OLD, OLD, MASK, correction=correction, cap=1.0)
    assert weights.eq(1.0).all() and not cut.any()


def test_token_mask_matches_areals_rejection_vector():
    log_ratio = torch.tensor([[0.0, 1.0, 0.0]])
    weights, _ = correction_weights(
        log_ratio, torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool), correction="token_mask", cap=2.0
    )
    assert weights.tolist() == [[1.0, 0.0, 1.0]]


def test_a_hopeless_sequence_ratio_overflows_to_the_cap():
    old, sampler = torch.zeros(1, 4), torch.full((1, 4), -60.0)
    weights, cut = correction_weights(old, sampler, old == 0, correction="sequence_tis", cap=2.0)
    assert weights.tolist() == [[2.0] * 4] and cut.all()


def test_weights_are_detached():
    old = OLD.clone().requires_grad_()
    weights, _ = correction_weights(old, SAMPLER, MASK, correction="token_tis", cap=2.0)
    assert not weights.requires_grad


def test_a_cap_that_makes_no_sense_is_refused():
    for correction, cap in (("token_tis", 0.0), ("token_mask", 0.5), ("sequence_mask", 0.9)):
        with pytest.raises(ValueError, match="correction_cap"):
            correction_weights(OLD, SAMPLER, MASK, correction=correction, cap=cap)
    with pytest.raises(ValueError, match="'tis'"):
        correction_weights(OLD, SAMPLER, MASK, correction="tis", cap=2.0)


def test_mismatch_metrics_in_hand_numbers():
    old, sampler = logs([[0.9, 0.3, 0.5]]), logs([[0.3, 0.9, 0.4]])
    metrics = mismatch_metrics(old, sampler, torch.tensor([[True, True, False]]))
    # log ratios +ln 3 and -ln 3: k1 cancels, k3 = (3 - 1 - ln 3) + (1/3 - 1 + ln 3) = 4/3
    assert metrics["mismatch_k1_sum"].item() == pytest.approx(0.0, abs=1e-12)
    assert metrics["mismatch_k3_sum"].item() == pytest.approx(4 / 3)
    assert metrics["mismatch_abs_sum"].item() == pytest.approx(2 * math.log(3))
    assert metrics["mismatch_prob_max"].item() == pytest.approx(0.6)


@pytest.mark.parametrize("invalid", [math.nan, -math.inf])
def test_a_token_without_a_sampler_logprob_is_counted_and_left_out_of_the_mismatch(invalid: float):
    old, sampler = logs([[0.9, 0.3, 0.5]]), logs([[0.3, 0.9, 0.4]])
    sampler[0, 1] = sampler[0, 2] = invalid
    metrics = mismatch_metrics(old, sampler, torch.tensor([[True, True, False]]))
    assert metrics["invalid_sampler_logprobs_count"].item() == 1
    assert metrics["mismatch_k1_sum"].item() == pytest.approx(-math.log(3))
    assert metrics["mismatch_abs_sum"].item() == pytest.approx(math.log(3))
    assert metrics["mismatch_prob_max"].item() == pytest.approx(0.6)


def test_mismatch_k1_has_the_sign_of_kl_sampler_to_trainer():
    metrics = mismatch_metrics(logs([[0.25]]), logs([[0.5]]), torch.tensor([[True]]))
    assert metrics["mismatch_k1_sum"].item() == pytest.approx(math.log(2))
