"""The slow reference: plain transformers and autograd, one unpadded sequence and one token at a time.

Written from the papers' formulas; shares no code with the trainer.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM


@dataclass(frozen=True)
class Objective:
    """The numbers of the loss, under the names of the papers: N, L, eps, beta."""

    limit: int
    temperature: float = 1.0
    aggregation: str = "constant"
    eps_low: float = 0.2
    eps_high: float = 0.2
    beta: float = 0.0
    estimator: str = "k3"
    entropy_coef: float = 0.0
    importance_cap: float = math.inf


@dataclass
class Gradient:
    """Loss and gradient of an optimizer step, and how many of its tokens lie beyond the clip."""

    loss: float
    by_name: dict[str, Tensor]
    num_clipped: int


def load_model(path: Path, weights: Mapping[str, Any] | None = None) -> nn.Module:
    """The model at `path` in float32 with transformers' own attention, optionally with other weights."""
    model: nn.Module = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    if weights is not None:
        own = dict(model.named_parameters())
        assert set(own) == set(weights)
        with torch.no_grad():
            for name, value in weights.items():
                own[name].copy_(torch.as_tensor(value))
    return model


def token_distributions(model: nn.Module, sample: Any, temperature: float) -> Tensor:
    """Log-probabilities [completion length, vocabulary] float64 of the tokens after each prefix of the completion."""
    ids = torch.tensor([[*sample.prompt_ids, *sample.completion_ids]])
    logits = model(ids).logits[0].double() / temperature
    return torch.log_softmax(logits[len(sample.prompt_ids) - 1 : -1], dim=-1)


def token_logprobs(model: nn.Module, sample: Any, temperature: float) -> Tensor:
    """Logprobs [completion length] float64 of a sample's own tokens, detached."""
    with torch.no_grad():
        distributions = token_distributions(model, sample, temperature)
    return torch.stack([row[token] for row, token in zip(distributions, sample.completion_ids, strict=True)])


def gradient(
    model: nn.Module,
    samples: Sequence[Any],
    objective: Objective,
    *,
    old: Sequence[Tensor] | None = None,
    reference: nn.Module | None = None,
) -> Gradient:
    """Loss and gradient of one optimizer step over all of `samples`; `old` are the frozen logprobs of each."""
    model.zero_grad(set_to_none=True)
    total, num_clipped = 0.0, 0
    num_tokens = sum(len(sample.completion_ids) for sample in samples)
    for index, sample in enumerate(samples):
        if not sample.completion_ids:
            continue
        distributions = token_distributions(model, sample, objective.temperature)
        fixed = None if reference is None else token_logprobs(reference, sample, objective.temperature)
        loss = torch.zeros((), dtype=torch.float64)
        for position, token in enumerate(sample.completion_ids):
            logprob = distributions[position, token]
            before = logprob.detach() if old is None else old[index][position]
            surrogate, clipped = _surrogate(logprob, before, sample.advantage, objective)
            if sample.sampler_logprobs and objective.importance_cap < math.inf:
                weight = (before - sample.sampler_logprobs[position]).exp()
                surrogate = surrogate * min(float(weight), objective.importance_cap)
            loss = loss + surrogate / _divisor(objective, len(samples), len(sample.completion_ids), num_tokens)
            extra = _extra_terms(distributions[position], logprob, fixed, position, objective)
            loss = loss + extra / _divisor(objective, len(samples), len(sample.completion_ids), num_tokens)
            num_clipped += clipped
        loss.backward()
        total += loss.item()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return Gradient(total, gradients, num_clipped)


def _surrogate(logprob: Tensor, before: Tensor, advantage: float, objective: Objective) -> tuple[Tensor, bool]:
    ratio = (logprob - before).exp()
    low, high = 1 - objective.eps_low, 1 + objective.eps_high
    clipped = torch.minimum(torch.maximum(ratio, torch.tensor(low)), torch.tensor(high))
    beyond = (advantage > 0 and ratio.item() > high) or (advantage < 0 and ratio.item() < low)
    return -torch.minimum(ratio * advantage, clipped * advantage), beyond


def _divisor(objective: Objective, num_sequences: int, length: int, num_tokens: int) -> int:
    return {
        "constant": num_sequences * objective.limit,
        "sequence_mean": num_sequences * length,
        "token_mean": num_tokens,
    }[objective.aggregation]


def _extra_terms(
    distribution: Tensor, logprob: Tensor, fixed: Tensor | None, position: int, objective: Objective
) -> Tensor:
    """beta * KL - coefficient * entropy of one token."""
    extra = torch.zeros((), dtype=torch.float64)
    if fixed is not None:
        difference = fixed[position] - logprob
        estimates = {"k1": -difference, "k2": difference**2 / 2, "k3": difference.exp() - 1 - difference}
        extra = extra + objective.beta * estimates[objective.estimator]
    if objective.entropy_coef:
        extra = extra + objective.entropy_coef * (distribution.exp() * distribution).sum()
    return extra


def relative_error(value: Any, expected: Any) -> float:
    """L2 norm of the difference over that of `expected`."""
    value, expected = torch.as_tensor(value).double(), torch.as_tensor(expected).double()
    return float((value - expected).norm() / expected.norm())


def largest_error(values: Mapping[str, Any], expected: Mapping[str, Any]) -> float:
    """The largest relative L2 error over all tensors, which must have the same names."""
    assert set(values) == set(expected)
    return max(relative_error(values[name], expected[name]) for name in expected)
