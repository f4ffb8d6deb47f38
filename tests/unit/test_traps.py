"""The known ways to get Dr. GRPO wrong, each with its exact numbers.

What needs an engine or a tokenizer is tested with that engine; trap 19, the statistics, is `test_tabular_policy`.
"""

import math

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from drgrpo.advantage import compute_advantages
from drgrpo.correction import correction_weights
from drgrpo.loss import merge_metrics, policy_loss, summarize_metrics
from drgrpo.metrics import sample_metrics


def rows(lengths: list[int], width: int | None = None) -> Tensor:
    return torch.arange(width or max(lengths))[None, :] < torch.tensor(lengths)[:, None]


def on_policy(lengths: list[int], advantages: list[float], **options: object) -> tuple[float, Tensor]:
    """Loss and its gradient in every log-probability where the ratio is 1."""
    mask = rows(lengths)
    logprobs = torch.full(mask.shape, -1.5, requires_grad=True)
    loss, _ = policy_loss(logprobs, logprobs, torch.tensor(advantages), mask, **options)
    return loss.item(), torch.autograd.grad(loss, logprobs)[0]


def test_trap_01_advantage_of_one_right_answer_in_four():
    rewards, group_ids = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.zeros(4, dtype=torch.int64)
    assert compute_advantages(rewards, group_ids).tolist() == [0.75, -0.25, -0.25, -0.25]
    grpo = compute_advantages(rewards, group_ids, std_level="group")
    assert grpo.tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5])  # ddof 0 would be 1.732, -.577
    rloo = compute_advantages(rewards, group_ids, leave_one_out=True)
    assert rloo.tolist() == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3])
    for options in ({}, {"std_level": "group"}, {"leave_one_out": True}, {"std_level": "batch"}):
        assert compute_advantages(torch.full((4,), 0.1), group_ids, **options).tolist() == [0.0] * 4


def test_trap_02_groups_are_keyed_by_id_whatever_the_order():
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    group_ids = torch.tensor([11] * 4 + [7] * 4)
    expected = torch.tensor([0.75, -0.25, -0.25, -0.25, 0.25, 0.25, 0.25, -0.75])
    assert torch.equal(compute_advantages(rewards, group_ids), expected)
    for seed in range(5):
        order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(compute_advantages(rewards[order], group_ids[order]), expected[order])


def test_trap_02_a_group_must_be_whole_when_it_is_normalised():
    rewards, group_ids = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.zeros(4, dtype=torch.int64)
    whole = compute_advantages(rewards, group_ids)
    cut = torch.cat([compute_advantages(rewards[half], group_ids[half]) for half in (slice(0, 2), slice(2, 4))])
    assert cut.tolist() == [0.5, -0.5, 0.0, 0.0]
    assert whole.tolist() == [0.75, -0.25, -0.25, -0.25]


TRAP_3 = {"lengths": [2, 4], "advantages": [0.5, -0.5], "num_sequences": 2, "max_completion_tokens": 8}


def test_trap_03_the_divisor_is_the_configured_limit():
    loss, gradient = on_policy(**TRAP_3)
    assert loss == 0.0625
    expected = [[-0.03125, -0.03125, 0.0, 0.0], [0.03125, 0.03125, 0.03125, 0.03125]]
    assert gradient.tolist() == expected  # the same size on every token


def test_trap_03_the_other_aggregations_are_other_numbers():
    loss, gradient = on_policy(**TRAP_3, aggregation="sequence_mean")
    assert loss == 0.0
    assert gradient.tolist() == [[-0.125, -0.125, 0.0, 0.0], [0.0625] * 4]
    loss, _ = on_policy(**TRAP_3, aggregation="token_mean", num_tokens=6)
    assert loss == pytest.approx(1 / 6)
    padded_width, _ = on_policy(**TRAP_3 | {"max_completion_tokens": 4})
    assert padded_width == 0.125  # what dividing by the longest completion would give
    summed, _ = on_policy(**TRAP_3 | {"max_completion_tokens": 4, "num_sequences": 1})
    assert summed == 0.25  # what a sum over sequences, divided by that width, would give


@pytest.mark.parametrize("aggregation", ["constant", "sequence_mean", "token_mean"])
def test_trap_04_padding_changes_neither_loss_nor_gradient(aggregation: str):
    generator = torch.Generator().manual_seed(0)
    content = torch.randn(3, 4, generator=generator)
    outcomes = []
    for width in (4, 16, 64):
        logprobs = torch.full((3, width), math.nan)
        logprobs[:, :4] = content
        logprobs.requires_grad_()
        old = torch.zeros(3, width)
        options = {"aggregation": aggregation, "num_sequences": 3, "num_tokens": 9, "max_completion_tokens": 64}
        loss, _ = policy_loss(logprobs, old, torch.tensor([1.0, -0.5, 0.2]), rows([4, 2, 3], width), **options)
        (gradient,) = torch.autograd.grad(loss, logprobs)
        assert not gradient[:, 4:].any()
        outcomes.append((loss.item(), gradient[:, :4].tolist()))
    assert outcomes[0][0] == pytest.approx(outcomes[1][0], rel=1e-6)
    assert outcomes[0][0] == pytest.approx(outcomes[2][0], rel=1e-6)
    assert outcomes[0][1] == outcomes[1][1] == outcomes[2][1]


# sums of the surrogate over each sequence: -1, -2, 3, -8
TRAP_5_LENGTHS, TRAP_5_ADVANTAGES = [2, 1, 3, 4], [0.5, 2.0, -1.0, 2.0]


def trap_5(part: slice, num_sequences: int) -> float:
    options = {"num_sequences": num_sequences, "max_completion_tokens": 8}
    return on_policy(TRAP_5_LENGTHS[part], TRAP_5_ADVANTAGES[part], **options)[0]


def test_trap_05_averaging_the_means_of_unequal_micro_batches_is_wrong():
    assert trap_5(slice(0, 4), 4) == -0.25
    assert trap_5(slice(0, 3), 4) + trap_5(slice(3, 4), 4) == -0.25
    assert (trap_5(slice(0, 3), 3) + trap_5(slice(3, 4), 1)) / 2 == -0.5  # the bug


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 4), (1, 1), (2, 2), (4, 1)])
def test_trap_05_gradients_do_not_depend_on_ranks_and_micro_batches(world_size: int, micro_batch: int):
    features = torch.randn(4, 4, 6, generator=torch.Generator().manual_seed(3))
    mask, advantages = rows(TRAP_5_LENGTHS), torch.tensor(TRAP_5_ADVANTAGES)

    def gradient(indices: list[int]) -> Tensor:
        weight = torch.linspace(-0.3, 0.3, 6, requires_grad=True)
        logprobs = -torch.nn.functional.softplus(features[indices] @ weight)
        old = logprobs.detach() - 0.05
        loss, _ = policy_loss(
            logprobs, old, advantages[indices], mask[indices], num_sequences=4, max_completion_tokens=8
        )
        return torch.autograd.grad(loss, weight)[0]

    ranks = [list(range(rank, 4, world_size)) for rank in range(world_size)]
    parts = [rank[i : i + micro_batch] for rank in ranks for i in range(0, len(rank), micro_batch)]
    whole, summed = gradient([0, 1, 2, 3]), torch.stack([gradient(part) for part in parts]).sum(dim=0)
    assert (summed - whole).norm() <= 1e-6 * whole.norm()


def test_trap_06_a_dropped_sequence_still_counts_in_n():
    mask = rows([3, 3])
    mask[1] = False
    logprobs = torch.zeros(2, 3)
    options = {"num_sequences": 2, "max_completion_tokens": 3}
    loss, _ = policy_loss(logprobs, logprobs, torch.tensor([1.0, 1.0]), mask, **options)
    assert loss.item() == -0.5


def test_trap_07_the_completions_own_end_token_is_trained_on():
    # prompt of 3, response [a, b, EOS], one pad; log-probability t is that of token t + 1
    completion = torch.tensor([[0, 0, 0, 1, 1, 1, 0, 0]])
    shifted = completion[:, 1:]
    assert shifted.tolist() == [[0, 0, 1, 1, 1, 0, 0]]
    logprobs = torch.zeros(1, 7, requires_grad=True)
    loss, metrics = policy_loss(
        logprobs, logprobs, torch.tensor([1.0]), shifted, num_sequences=1, max_completion_tokens=4
    )
    assert metrics["tokens_count"].item() == 3
    assert torch.autograd.grad(loss, logprobs)[0].tolist() == [[0.0, 0.0, -0.25, -0.25, -0.25, 0.0, 0.0]]


def test_trap_09_a_truncated_completion_scores_zero_stays_in_the_mean_and_is_trained_on():
    rewards, truncated = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([True, False, False, False])
    rewards = torch.where(truncated, 0.0, rewards)
    advantages = compute_advantages(rewards, torch.zeros(4, dtype=torch.int64))
    assert advantages.tolist() == [-0.25, 0.75, -0.25, -0.25]
    _, gradient = on_policy([8, 2, 3, 1], advantages.tolist(), num_sequences=4, max_completion_tokens=8)
    assert gradient[0].tolist() == [0.25 / 32] * 8


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "gradient"),
    [(1.0, 1.5, -1.2, 0.0), (1.0, 0.5, -0.5, -0.5), (-1.0, 1.5, 1.5, 1.5), (-1.0, 0.5, 0.8, 0.0)],
)
def test_trap_10_the_clip_is_pessimistic(advantage: float, ratio: float, loss: float, gradient: float):
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    value, metrics = policy_loss(
        *(logprobs, torch.zeros(1, 1), torch.tensor([advantage]), torch.ones(1, 1)),
        **{"num_sequences": 1, "max_completion_tokens": 1},
    )
    assert value.item() == pytest.approx(loss)
    assert torch.autograd.grad(value, logprobs)[0].item() == pytest.approx(gradient)  # times the ratio: d/d log π
    assert metrics["clip_low_sum"] + metrics["clip_high_sum"] == (gradient == 0.0)


def test_trap_11_the_first_minibatch_is_on_policy_and_later_ones_keep_the_same_old_logprobs():
    lengths, advantages = [2, 5, 3], torch.tensor([0.75, -0.25, -0.5])
    mask = rows(lengths)
    logprobs = torch.full(mask.shape, -1.0, requires_grad=True)
    old = logprobs.detach().clone()
    options = {"num_sequences": 3, "max_completion_tokens": 10}

    loss, metrics = policy_loss(logprobs, old, advantages, mask, **options)
    summary = summarize_metrics(merge_metrics([metrics]))
    assert loss.item() == pytest.approx(-(0.75 * 2 - 0.25 * 5 - 0.5 * 3) / 30)
    assert (summary["ratio_mean"], summary["ratio_max"], summary["clip_fraction"]) == (1.0, 1.0, 0.0)

    moved = (logprobs + math.log(1.1)).detach()
    second, metrics = policy_loss(moved, old, advantages, mask, **options)
    assert second.item() == pytest.approx(1.1 * loss.item())
    assert summarize_metrics(merge_metrics([metrics]))["ratio_mean"] == pytest.approx(1.1)
    moved_again = (logprobs + math.log(1.3)).detach()
    third, _ = policy_loss(moved_again, old, advantages, mask, **options)
    assert third.item() == pytest.approx(-(1.2 * 0.75 * 2 - 1.3 * 0.25 * 5 - 1.3 * 0.5 * 3) / 30)


def test_trap_12_truncated_importance_sampling_weights():
    old = torch.tensor([[0.9, 0.3, 0.6]]).log().requires_grad_()
    sampler = torch.tensor([[0.3, 0.9, 0.6]]).log()
    mask = torch.ones(1, 3, dtype=torch.bool)
    weights, _ = correction_weights(old, sampler, mask, correction="token_tis", cap=2.0)
    assert weights.tolist()[0] == pytest.approx([2.0, 1 / 3, 1.0])
    assert not weights.requires_grad


def test_trap_15_bfloat16_accumulation_loses_the_gradient_that_float32_keeps():
    def accumulated(dtype: torch.dtype) -> float:
        total = torch.zeros((), dtype=dtype)
        for _ in range(1024):
            logprobs = torch.zeros(1, 1, requires_grad=True)
            tensors = (logprobs, logprobs, torch.tensor([-1.0]), torch.ones(1, 1))
            loss, _ = policy_loss(*tensors, num_sequences=1024, max_completion_tokens=1)
            total += torch.autograd.grad(loss, logprobs)[0].to(dtype).squeeze()
        return total.item()

    assert accumulated(torch.float32) == 1.0
    assert accumulated(torch.bfloat16) == 0.25  # stalls where 1/1024 is half a unit in the last place


def first_adam_step(limit: int, eps: float, signal: float = 3e-5) -> float:
    """First AdamW step, in units of the learning rate, of a weight whose gradient is `signal / limit`."""
    weight = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW([weight], lr=1.0, betas=(0.9, 0.95), eps=eps, weight_decay=0.0)
    logprobs = signal * weight
    tensors = (logprobs, logprobs, torch.tensor([1.0]), torch.ones(1, 1))
    loss, _ = policy_loss(*tensors, num_sequences=1, max_completion_tokens=limit)
    loss.backward()
    optimizer.step()
    return weight.item()


def test_trap_15_the_constant_divisor_meets_the_epsilon_of_adam():
    # step = g/(g + eps): g = 3e-5 at L = 1, and 1e-8, as large as eps itself, at L = 3000
    assert first_adam_step(limit=1, eps=1e-8) == pytest.approx(3e-5 / (3e-5 + 1e-8))
    assert first_adam_step(limit=3000, eps=1e-8) == pytest.approx(0.5)
    assert first_adam_step(limit=3000, eps=1e-15) == pytest.approx(1.0, abs=1e-6)


def test_trap_15_the_constant_divisor_takes_the_bite_out_of_gradient_clipping():
    norms = {
        limit: on_policy([9], [1.0], num_sequences=1, max_completion_tokens=limit)[1].norm() for limit in (1, 3000)
    }
    assert norms[1].item() == pytest.approx(3.0)  # clipped to a third at 1.0
    assert norms[3000].item() == pytest.approx(0.001)  # never clipped


def test_trap_16_entropy_is_the_mean_over_the_tokens_of_all_ranks():
    def metrics(entropies: list[float]) -> dict[str, Tensor]:
        zeros = torch.zeros(1, len(entropies))
        entropy = torch.tensor([entropies])
        options = {"num_sequences": 2, "max_completion_tokens": 4, "entropy": entropy}
        return policy_loss(zeros, zeros, torch.zeros(1), torch.ones_like(zeros), **options)[1]

    merged = merge_metrics([metrics([2.0]), metrics([1.0, 1.0, 1.0])])
    assert summarize_metrics(merged)["entropy"] == 1.25  # the mean of the ranks' means is 1.5


def test_trap_16_the_kl_term_is_divided_as_the_surrogate_is():
    mask = rows([2, 4])
    logprobs = torch.full((2, 4), -1.0)
    options = {"num_sequences": 2, "max_completion_tokens": 8, "num_tokens": 6, "kl_coef": 0.5}
    k3 = 2 - 1 - math.log(2)  # the reference twice as likely
    for aggregation, expected in (("constant", 6 * k3 / 16), ("sequence_mean", k3), ("token_mean", k3)):
        loss, metrics = policy_loss(
            *(logprobs, logprobs, torch.zeros(2), mask),
            **options,
            **{"aggregation": aggregation, "ref_logprobs": logprobs + math.log(2)},
        )
        assert loss.item() == pytest.approx(0.5 * expected, abs=1e-6)
        assert summarize_metrics(merge_metrics([metrics]))["kl"] == pytest.approx(k3, abs=1e-6)


def test_trap_17_a_zero_variance_group_has_no_gradient_and_filtering_it_keeps_n():
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    group_ids = torch.tensor([0] * 4 + [1] * 4)
    advantages = compute_advantages(rewards, group_ids)
    lengths = [2, 5, 1, 3, 4, 2, 5, 5]
    options = {"num_sequences": 8, "max_completion_tokens": 8}
    whole_loss, whole = on_policy(lengths, advantages.tolist(), **options)
    assert not whole[4:].any()
    filtered_loss, filtered = on_policy(lengths[:4], advantages[:4].tolist(), **options)
    assert filtered_loss == pytest.approx(whole_loss)
    assert torch.equal(filtered, whole[:4])


def test_trap_17_all_right_and_all_wrong_groups_are_counted_apart():
    rewards = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    columns = {
        "group_id": [0, 0, 1, 1, 2, 2, 3, 3],
        "completion": ["x"] * 8,
        "completion_ids": [[1]] * 8,
        "finish_reason": ["stop"] * 8,
        "reward": rewards,
        "correct": [reward == 1.0 for reward in rewards],
    }
    metrics = sample_metrics(pa.table(columns), num_groups=4, group_size=2, max_completion_tokens=8)
    shares = [metrics[f"rollout/{name}_share"] for name in ("zero_variance", "all_right", "all_wrong")]
    assert shares == [0.75, 0.25, 0.5]


def test_the_paper_setting_is_the_default_and_ignores_lengths():
    # a mixed group with lengths 100 and 300, and an all-right group: token-weighted normalisation gets both wrong
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    advantages = compute_advantages(rewards, torch.tensor([0] * 4 + [1] * 4))
    assert advantages.tolist() == [0.75, -0.25, -0.25, -0.25, 0.0, 0.0, 0.0, 0.0]
    lengths = [100, 300, 300, 300, 150, 150, 150, 150]
    loss, _ = on_policy(lengths, advantages.tolist(), num_sequences=8, max_completion_tokens=500)
    assert loss == pytest.approx(-(75 - 3 * 75) / (8 * 500), rel=1e-5)
