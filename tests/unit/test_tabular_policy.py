"""Trap 19: with a tabular policy the true gradient is known, and only Dr. GRPO's estimate is parallel to it.

Three questions, three positions, the vocabulary {a, b, EOS}; completions end at EOS or at L = 3. The expected reward is
a sum over all 27 token triples (what follows an EOS is sampled but ignored), so its gradient is exact.
"""

from itertools import product

import pytest
import torch
from torch import Tensor

from drgrpo.advantage import compute_advantages
from drgrpo.loss import policy_loss

L, G, A, B, EOS = 3, 8, 0, 1, 2
NUM_CHUNKS, GROUPS_PER_CHUNK = 100, 1002  # 100,200 groups in all, a third of them for each question


def reward(question: Tensor, tokens: Tensor) -> Tensor:
    """A short easy answer, a middling one, and a long rare one are right."""
    first, second, third = tokens.unbind(dim=-1)
    easy = first == EOS
    middling = (first == A) & (second == B)
    rare = (first == B) & (second == B) & (third == A)
    return torch.where(question == 0, easy, torch.where(question == 1, middling, rare)).double()


def completion_mask(tokens: Tensor) -> Tensor:
    ended_before = (tokens == EOS).cumsum(dim=-1) - (tokens == EOS).long()
    return ended_before == 0


def policy_logits() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    logits = 0.5 * torch.randn(3, L, 3, generator=generator, dtype=torch.float64)
    logits[0, 0, EOS] += 3.0  # solved nearly always
    logits[1, 0, A] += 1.0  # solved about half of the time
    logits[1, 1, B] += 2.0
    logits[2, 0, B] -= 1.0  # solved rarely
    logits[2, 1, B] += 3.0
    logits[2, 2, A] += 2.0
    return logits.requires_grad_()


def analytic_gradient(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of the reward expected over the questions, and the share of each that is solved."""
    triples = torch.tensor(list(product(range(3), repeat=3)))
    logp = torch.log_softmax(logits, dim=-1)
    probability = torch.stack([logp[:, t, triples[:, t]] for t in range(L)]).sum(dim=0).exp()
    solved = (probability * reward(torch.arange(3)[:, None], triples[None])).sum(dim=1)
    return torch.autograd.grad(solved.mean(), logits)[0], solved.detach()


def sample_chunk(logits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    question = torch.arange(GROUPS_PER_CHUNK).remainder(3).repeat_interleave(G)
    probabilities = torch.softmax(logits.detach(), dim=-1)[question].reshape(-1, 3)
    tokens = torch.multinomial(probabilities, 1, generator=generator).reshape(-1, L)
    return question, tokens, torch.arange(GROUPS_PER_CHUNK).repeat_interleave(G)


def chunk_gradients(std_level: str, aggregation: str, leave_one_out: bool = False) -> tuple[Tensor, Tensor]:
    """Mean over the chunks of the ascent direction [27], and its standard error."""
    logits, generator = policy_logits(), torch.Generator().manual_seed(1)
    gradients = []
    for _ in range(NUM_CHUNKS):
        question, tokens, group_ids = sample_chunk(logits, generator)
        rewards = reward(question, tokens)
        advantages = compute_advantages(rewards, group_ids, std_level=std_level, leave_one_out=leave_one_out)
        logp = torch.log_softmax(logits, dim=-1)[question].gather(2, tokens[..., None])[..., 0]
        options = {"aggregation": aggregation, "num_sequences": len(tokens), "max_completion_tokens": L}
        loss, _ = policy_loss(logp, logp, advantages, completion_mask(tokens), **options)
        gradients.append(-torch.autograd.grad(loss, logits)[0].flatten())
    stacked = torch.stack(gradients)
    return stacked.mean(dim=0), stacked.std(dim=0) / NUM_CHUNKS**0.5


def test_the_questions_are_easy_middling_and_hard():
    _, solved = analytic_gradient(policy_logits())
    assert solved.tolist() == pytest.approx([0.912, 0.486, 0.085], abs=5e-4)


@pytest.mark.parametrize(("leave_one_out", "factor"), [(False, L * G / (G - 1)), (True, L)])
def test_trap_19_the_mean_gradient_of_dr_grpo_is_the_analytic_one(leave_one_out: bool, factor: float):
    truth = analytic_gradient(policy_logits())[0].flatten()
    mean, error = (factor * x for x in chunk_gradients("none", "constant", leave_one_out))
    assert ((mean - truth).abs() <= 4 * error + 1e-12).all()
    assert error.max() < 0.01 * truth.abs().max()
    assert torch.cosine_similarity(mean, truth, dim=0) > 0.9999


@pytest.mark.parametrize(
    ("std_level", "aggregation"), [("group", "sequence_mean"), ("group", "constant"), ("none", "sequence_mean")]
)
def test_trap_19_grpos_mean_gradient_is_not_parallel_to_it(std_level: str, aggregation: str):
    """Whole GRPO, and each of its two biases alone."""
    truth = analytic_gradient(policy_logits())[0].flatten()
    mean, error = chunk_gradients(std_level, aggregation)
    best_scale = (mean @ truth) / (truth @ truth)
    deviation = (mean - best_scale * truth).abs()
    assert (deviation > 20 * error).any()
    assert torch.cosine_similarity(mean, truth, dim=0) < 0.997
