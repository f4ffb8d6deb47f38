"""The policy loss against hand numbers and against a slow reference that loops over sequences and tokens."""

import math

import pytest
import torch
from torch import Tensor

from drgrpo.loss import merge_metrics, policy_loss, summarize_metrics

AGGREGATIONS = ["constant", "sequence_mean", "token_mean"]
CORRECTIONS = ["off", "token_tis", "sequence_tis", "token_mask", "sequence_mask"]


def rows(lengths: list[int], width: int | None = None) -> Tensor:
    return torch.arange(width or max(lengths))[None, :] < torch.tensor(lengths)[:, None]


def reference_loss(case: dict[str, Tensor], options: dict) -> Tensor:
    """The formulas of the paper, one token at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(case["advantages"])):
        positions = [t for t in range(case["mask"].shape[1]) if case["mask"][i, t]]
        logs = {t: (case["old_logprobs"][i, t] - case["sampler_logprobs"][i, t]).item() for t in positions}
        for t in positions:
            value = reference_token(case, i, t, logs, options)
            if options["aggregation"] == "constant":
                total = total + value / options["num_sequences"] / options["max_completion_tokens"]
            elif options["aggregation"] == "sequence_mean":
                total = total + value / len(positions) / options["num_sequences"]
            else:
                total = total + value / options["num_tokens"]
    return total


def reference_token(case: dict[str, Tensor], i: int, t: int, logs: dict[int, float], options: dict) -> Tensor:
    advantage = case["advantages"][i].item()
    ratio = torch.exp(case["logprobs"][i, t] - case["old_logprobs"][i, t])
    low, high = 1 - options["clip_eps_low"], 1 + options["clip_eps_high"]
    clipped = ratio * 0 + low if ratio < low else ratio * 0 + high if ratio > high else ratio
    objective = clipped * advantage if clipped * advantage < ratio * advantage else ratio * advantage
    cap, correction = options["correction_cap"], options["correction"]
    weight = math.exp(sum(logs.values()) if correction.startswith("sequence") else logs[t])
    if correction == "off":
        weight = 1.0
    elif correction.endswith("tis"):
        weight = min(weight, cap)
    elif weight > cap or weight < 1 / cap:
        weight = 0.0
    gap = case["ref_logprobs"][i, t] - case["logprobs"][i, t]
    kl = {"k1": -gap, "k2": gap**2 / 2, "k3": torch.exp(gap) - 1 - gap}[options["kl_estimator"]]
    return -weight * objective + options["kl_coef"] * kl - options["entropy_coef"] * case["entropy"][i, t]


def random_case(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(5, 6, generator=generator, dtype=torch.float64)

    logprobs = -1.5 + noise(0.5)
    mask = rows([6, 1, 4, 0, 3])
    mask[0, 2] = False  # a hole, as a multi-turn mask has
    return {
        "logprobs": logprobs.clone().requires_grad_(),
        "old_logprobs": logprobs + noise(0.3),
        "sampler_logprobs": logprobs + noise(0.5),
        "ref_logprobs": logprobs + noise(0.4),
        "entropy": (2 + noise(0.3)).requires_grad_(),
        "advantages": torch.randn(5, generator=generator, dtype=torch.float64),
        "mask": mask,
    }


@pytest.mark.parametrize("kl_estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_loss_and_gradients_equal_the_slow_reference(aggregation: str, correction: str, kl_estimator: str):
    case = random_case(seed=7)
    options = {
        "aggregation": aggregation,
        "correction": correction,
        "kl_estimator": kl_estimator,
        "num_sequences": 9,
        "num_tokens": 31,
        "max_completion_tokens": 8,
        "clip_eps_low": 0.15,
        "clip_eps_high": 0.25,
        "correction_cap": 1.4,
        "kl_coef": 0.3,
        "entropy_coef": 0.07,
    }
    loss, _ = policy_loss(**case, **options)
    expected = reference_loss(case, options)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    leaves = (case["logprobs"], case["entropy"])
    torch.testing.assert_close(
        torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), rtol=1e-10, atol=1e-12
    )


def test_gradients_agree_with_finite_differences():
    case = random_case(seed=3)

    def loss(logprobs: Tensor, entropy: Tensor) -> Tensor:
        changed = case | {"logprobs": logprobs, "entropy": entropy}
        options = {"correction": "token_tis", "kl_coef": 0.2, "entropy_coef": 0.1}
        return policy_loss(**changed, num_sequences=5, max_completion_tokens=6, **options)[0]

    assert torch.autograd.gradcheck(loss, (case["logprobs"], case["entropy"]))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_the_loss_is_additive_over_any_split(aggregation: str):
    case = random_case(seed=11)
    options = {"aggregation": aggregation, "num_sequences": 5, "num_tokens": 13, "max_completion_tokens": 8}
    whole, whole_metrics = policy_loss(**case, **options)
    parts = [
        policy_loss(**{name: value[index] for name, value in case.items()}, **options)
        for index in ([3], [4, 0], [2, 1])
    ]
    torch.testing.assert_close(sum(loss for loss, _ in parts), whole, rtol=1e-12, atol=0)
    merged = merge_metrics([metrics for _, metrics in parts])
    assert merged == pytest.approx({key: value.item() for key, value in whole_metrics.items()})


def one_token(advantage: float, ratio: float, **options: float) -> tuple[float, float]:
    log_ratio = torch.tensor([[math.log(ratio)]], requires_grad=True)
    tensors = (log_ratio, torch.zeros(1, 1), torch.tensor([advantage]), torch.ones(1, 1))
    loss, _ = policy_loss(*tensors, num_sequences=1, max_completion_tokens=1, **options)
    (gradient,) = torch.autograd.grad(loss, log_ratio)
    return loss.item(), gradient.item()


def test_clip_higher_lets_a_rare_good_token_grow_further():
    assert one_token(1.0, 1.25) == pytest.approx((-1.2, 0.0), abs=1e-6)
    assert one_token(1.0, 1.25, clip_eps_high=0.28) == pytest.approx((-1.25, -1.25), abs=1e-6)
    assert one_token(1.0, 1.5, clip_eps_high=0.28) == pytest.approx((-1.28, 0.0), abs=1e-6)
    assert one_token(-1.0, 0.75, clip_eps_high=0.28) == pytest.approx((0.8, 0.0), abs=1e-6)
    assert one_token(-1.0, 0.75, clip_eps_low=0.3) == pytest.approx((0.75, 0.75), abs=1e-6)


def test_at_ratio_one_the_gradient_is_whole_even_without_any_clip_range():
    assert one_token(1.0, 1.0, clip_eps_low=0.0, clip_eps_high=0.0) == pytest.approx((-1.0, -1.0))
    assert one_token(-2.0, 1.0) == pytest.approx((2.0, 2.0))


def test_old_logprobs_may_be_the_same_tensor_as_logprobs():
    logprobs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    loss, _ = policy_loss(
        logprobs, logprobs, torch.tensor([2.0]), torch.ones(1, 2), num_sequences=1, max_completion_tokens=4
    )
    loss.backward()
    assert loss.item() == -1.0
    assert logprobs.grad is not None and logprobs.grad.tolist() == [[-0.5, -0.5]]


def equal_ratio_loss(lengths: list[int], advantages: list[float], **options: object) -> float:
    mask = rows(lengths)
    logprobs = torch.full(mask.shape, -1.0)
    loss, _ = policy_loss(logprobs, logprobs, torch.tensor(advantages), mask, **options)
    return loss.item()


def test_each_aggregation_in_hand_numbers():
    lengths, advantages = [1, 3, 2], [3.0, -1.0, 0.5]
    # per token -3 | 1 1 1 | -.5 -.5, in sum -1
    options = {"num_sequences": 4, "num_tokens": 10, "max_completion_tokens": 5}
    assert equal_ratio_loss(lengths, advantages, aggregation="constant", **options) == pytest.approx(-1 / 20)
    assert equal_ratio_loss(lengths, advantages, aggregation="sequence_mean", **options) == pytest.approx(-2.5 / 4)
    assert equal_ratio_loss(lengths, advantages, aggregation="token_mean", **options) == pytest.approx(-1 / 10)


def test_areals_sequence_vector():
    # advantages 1..4 and .5 per token: sequence means 2.5 and .5
    assert equal_ratio_loss(
        [4, 4], [2.5, 0.5], aggregation="sequence_mean", num_sequences=2, max_completion_tokens=4
    ) == pytest.approx(-1.5)


def test_a_longer_completion_keeps_its_weight_per_token_under_constant_and_loses_it_under_sequence_mean():
    def weight(length: int, aggregation: str) -> float:
        options = {"aggregation": aggregation, "num_sequences": 1, "max_completion_tokens": 8}
        return equal_ratio_loss([length], [1.0], **options) / length

    assert weight(8, "constant") == weight(4, "constant")
    assert weight(8, "sequence_mean") == pytest.approx(weight(4, "sequence_mean") / 2)


@pytest.mark.parametrize(
    ("correction", "expected", "num_cut"),
    [
        ("off", -2.0, 0),
        ("token_tis", -(2.5 + 0.125), 1),
        ("token_mask", 0.0, 2),
        ("sequence_tis", -(0.5 + 0.5), 0),
        ("sequence_mask", -(0.5 + 0.5), 0),
    ],
)
def test_a_correction_weights_the_surrogate_and_never_changes_the_normaliser(
    correction: str, expected: float, num_cut: int
):
    # trainer/sampler ratios 4 and 1/8, product 1/2
    old = torch.full((1, 2), math.log(0.1))
    sampler = torch.tensor([[0.1 / 4, 0.1 * 8]]).log()
    loss, metrics = policy_loss(
        *(old, old, torch.tensor([1.0]), torch.ones(1, 2)),
        **{"num_sequences": 3, "max_completion_tokens": 5, "sampler_logprobs": sampler},
        **{"correction": correction, "correction_cap": 2.5},
    )
    assert loss.item() == pytest.approx(expected / 15, abs=1e-6)
    assert metrics["corrected_sum"].item() == num_cut


def test_the_entropy_bonus_is_subtracted_and_differentiable():
    entropy = torch.tensor([[1.0, 2.0, 9.0], [3.0, 9.0, 9.0]], requires_grad=True)
    mask = rows([2, 1], width=3)
    zeros = torch.zeros(2, 3)
    loss, metrics = policy_loss(
        *(zeros, zeros, torch.zeros(2), mask),
        **{"num_sequences": 2, "max_completion_tokens": 3, "entropy": entropy, "entropy_coef": 0.5},
    )
    loss.backward()
    assert loss.item() == pytest.approx(-0.5 * 6 / 6)
    assert entropy.grad is not None
    torch.testing.assert_close(entropy.grad, torch.where(mask, -0.5 / 6, 0.0))
    assert metrics["entropy_sum"].item() == 6.0


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_garbage_in_masked_positions_changes_nothing(correction: str, garbage: float):
    clean = random_case(seed=5)
    dirty = {
        name: value if name in ("mask", "advantages") else torch.where(clean["mask"], value, garbage).detach()
        for name, value in clean.items()
    }
    dirty["logprobs"].requires_grad_()
    dirty["entropy"].requires_grad_()
    options = {"num_sequences": 5, "max_completion_tokens": 6, "correction": correction}
    options |= {"kl_coef": 0.1, "entropy_coef": 0.1}
    outcomes = []
    for case in (clean, dirty):
        loss, metrics = policy_loss(**case, **options)
        gradients = torch.autograd.grad(loss, (case["logprobs"], case["entropy"]))
        outcomes.append((loss, *gradients, *metrics.values()))
    for first, second in zip(*outcomes, strict=True):
        assert torch.equal(first, second)


def test_half_precision_is_computed_in_float32():
    logprobs = torch.full((1, 300), -1.0, dtype=torch.bfloat16, requires_grad=True)
    tensors = (logprobs, logprobs, torch.tensor([1.0], dtype=torch.bfloat16), torch.ones(1, 300))
    loss, _ = policy_loss(*tensors, num_sequences=1, max_completion_tokens=1)
    assert loss.dtype == torch.float32
    assert loss.item() == -300.0  # 300 ones added in bfloat16 stop at 256


def test_only_logprobs_and_entropy_get_gradients():
    case = random_case(seed=4)
    others = [
        case[name].requires_grad_() for name in ("old_logprobs", "sampler_logprobs", "ref_logprobs", "advantages")
    ]
    loss, _ = policy_loss(
        **case, num_sequences=5, max_completion_tokens=6, correction="token_tis", kl_coef=0.1, entropy_coef=0.1
    )
    assert torch.autograd.grad(loss, others, allow_unused=True, retain_graph=True) == (None,) * 4
    assert all(gradient.any() for gradient in torch.autograd.grad(loss, (case["logprobs"], case["entropy"])))


def test_an_all_masked_or_empty_batch_has_a_zero_loss_and_zero_gradients():
    for shape in ((2, 3), (0, 3), (2, 0)):
        logprobs = torch.full(shape, math.nan, requires_grad=True)
        for aggregation in AGGREGATIONS:
            loss, metrics = policy_loss(
                *(logprobs, logprobs, torch.ones(shape[0]), torch.zeros(shape)),
                **{"aggregation": aggregation, "num_sequences": 2, "num_tokens": 5, "max_completion_tokens": 3},
            )
            (gradient,) = torch.autograd.grad(loss, logprobs)
            assert loss.item() == 0.0 and not gradient.any()
            assert summarize_metrics(merge_metrics([metrics])) == {"num_tokens": 0.0, "num_sequences": 0.0}


def test_metrics_in_hand_numbers():
    # ratios 1.5, .5 with a positive, 1.5, .5 with a negative advantage; one masked token in each row
    log_ratio = torch.tensor([[1.5, 0.5, 7.0], [1.5, 0.5, 7.0]]).log()
    old = torch.full((2, 3), math.log(0.3))
    sampler = torch.tensor([[0.3, 0.2, 0.9], [0.4, 0.3, 0.9]]).log()
    _, metrics = policy_loss(
        *(log_ratio + old, old, torch.tensor([1.0, -1.0]), rows([2, 2], width=3)),
        **{"num_sequences": 2, "max_completion_tokens": 3, "sampler_logprobs": sampler},
        **{"entropy": torch.tensor([[1.0, 2.0, 99.0], [3.0, 4.0, 99.0]]), "ref_logprobs": old},
        **{"kl_estimator": "k1"},
    )
    summary = summarize_metrics(merge_metrics([metrics]))
    mean_log = (math.log(1.5) + math.log(0.5)) / 2
    assert summary == pytest.approx(
        {
            "num_tokens": 4.0,
            "num_sequences": 2.0,
            "clip_fraction_low": 0.25,
            "clip_fraction_high": 0.25,
            "clip_fraction": 0.5,
            "ratio_mean": 1.0,
            "ratio_max": 1.5,
            "policy_kl_k1": -mean_log,
            "policy_kl_k3": -mean_log,
            "mismatch_k1": (math.log(0.2 / 0.3) + math.log(0.4 / 0.3)) / 4,
            "mismatch_k3": (1.5 - 1 - math.log(1.5) + 0.75 - 1 - math.log(0.75)) / 4,
            "mismatch_abs": (math.log(1.5) + math.log(4 / 3)) / 4,
            "mismatch_max_abs_prob": 0.1,
            "invalid_sampler_logprobs": 0.0,
            "corrected_fraction": 0.0,
            "entropy": 2.5,
            "kl": mean_log,
        },
        abs=1e-6,
    )


def with_nan(num_invalid: int, correction: str) -> tuple[float, Tensor, dict[str, float]]:
    """Loss, gradient and summary of two tokens, sampler at 1/2 and trainer at 1/4, the last ones' sampler at NaN."""
    logprobs = torch.full((1, 2), math.log(0.25), requires_grad=True)
    sampler = torch.full((1, 2), math.log(0.5))
    sampler[0, 2 - num_invalid :] = math.nan
    loss, metrics = policy_loss(
        *(logprobs, logprobs, torch.tensor([1.0]), torch.ones(1, 2)),
        **{"num_sequences": 1, "max_completion_tokens": 2, "sampler_logprobs": sampler, "correction": correction},
    )
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return loss.item(), gradient, summarize_metrics(merge_metrics([metrics]))


def test_a_sampler_logprob_that_is_no_number_touches_neither_loss_nor_mismatch_where_nothing_is_corrected():
    loss, gradient, summary = with_nan(1, "off")
    assert loss == -1.0 and gradient.tolist() == [[-0.5, -0.5]]
    assert summary["invalid_sampler_logprobs"] == 1.0
    assert summary["mismatch_k1"] == summary["mismatch_abs"] == pytest.approx(math.log(2))
    assert summary["mismatch_max_abs_prob"] == pytest.approx(0.25)
    assert all(math.isfinite(value) for value in summary.values())
    _, _, lost = with_nan(2, "off")  # none is left to measure: no number, not a mismatch of 0
    assert lost["invalid_sampler_logprobs"] == 2.0 and not [key for key in lost if key.startswith("mismatch")]
    assert lost["ratio_mean"] == 1.0


@pytest.mark.parametrize("correction", CORRECTIONS[1:])
def test_a_correction_by_no_number_gives_no_gradient_to_step_on(correction: str):
    loss, gradient, summary = with_nan(1, correction)
    assert math.isnan(loss) and gradient.isnan().any()
    assert summary["invalid_sampler_logprobs"] == 1.0


def test_metrics_carry_no_graph():
    case = random_case(seed=2)
    _, metrics = policy_loss(**case, num_sequences=5, max_completion_tokens=6)
    assert not any(value.requires_grad for value in metrics.values())


def test_merging_adds_sums_and_counts_and_keeps_the_largest_maximum():
    first = {"tokens_count": torch.tensor(3.0), "ratio_sum": 3.5, "ratio_max": torch.tensor(2.0)}
    second = {"tokens_count": 1, "ratio_sum": torch.tensor(1.0), "ratio_max": 5.0, "kl_sum": 0.25}
    assert merge_metrics([first, second]) == {"tokens_count": 4, "ratio_sum": 4.5, "ratio_max": 5, "kl_sum": 0.25}
    assert merge_metrics([]) == {}
    with pytest.raises(ValueError, match="'entropy'"):
        merge_metrics([{"entropy": 1.0}])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"correction": "token_tis"}, "needs sampler_logprobs"),
        ({"kl_coef": 0.1}, "needs ref_logprobs"),
        ({"entropy_coef": 0.1}, "needs entropy"),
        ({"aggregation": "token_mean"}, "needs num_tokens"),
        ({"aggregation": "mean"}, "aggregation is 'mean'"),
        ({"num_sequences": 0}, "num_sequences 0"),
        ({"ref_logprobs": torch.zeros(2, 4), "kl_coef": 0.1}, r"\(2, 3\), \(2, 4\)"),
        ({"correction": "tis", "sampler_logprobs": torch.zeros(2, 3)}, "correction is 'tis'"),
        ({"kl_estimator": "k9", "ref_logprobs": torch.zeros(2, 3)}, "'k9'"),
    ],
)
def test_a_missing_tensor_or_wrong_option_is_refused_by_name(options: dict, message: str):
    zeros = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=message):
        policy_loss(zeros, zeros, torch.ones(2), zeros, **{"num_sequences": 2, "max_completion_tokens": 3} | options)


def test_advantages_per_token_are_refused():
    zeros = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="advantages"):
        policy_loss(zeros, zeros, zeros, zeros, num_sequences=2, max_completion_tokens=3)
