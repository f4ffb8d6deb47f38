"""The completions, rewards and masks that our peers and we are given, and what ours makes of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from drgrpo.loss import policy_loss
from tests.engines.samples import LIMIT, random_samples

GROUP_SIZE = 4
SAMPLES = random_samples(num_groups=6, group_size=GROUP_SIZE)
GROUPS = torch.tensor([sample.group_id for sample in SAMPLES])
# Right and wrong, one group without signal, graded rewards: exact in float32, and so are their means.
REWARDS = [0.0, 1, 0, 1, 1, 1, 1, 1, 0.25, 0.5, 0, 1, 0, 0, 0, 1, 1, 1, 0, 1, 0.5, 0, 0, 0]
# Every third token of every fourth completion is not the policy's own.
MASKS = [[int(row % 4 != 2 or i % 3 != 1) for i in range(s.completion_len)] for row, s in enumerate(SAMPLES)]


def load_model(path: Path, weights: Mapping[str, Any] | None = None) -> nn.Module:
    """The model at `path` in float64, optionally with other weights."""
    model: nn.Module = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    if weights is not None:
        for name, parameter in model.named_parameters():
            parameter.data.copy_(torch.as_tensor(weights[name]))
    return model


def completion_logprobs(model: nn.Module, rows: Sequence[int]) -> Tensor:
    """Logprobs [B, LIMIT] of the completions' tokens, each from its own unpadded sequence."""
    result = []
    for sample in (SAMPLES[row] for row in rows):
        ids = torch.tensor([[*sample.prompt_ids, *sample.completion_ids]])
        logits = model(ids).logits[0, len(sample.prompt_ids) - 1 : -1]
        result.append(torch.log_softmax(logits, dim=-1)[range(sample.completion_len), list(sample.completion_ids)])
    return padded(result)


def completion_masks(rows: Sequence[int]) -> Tensor:
    """Masks [B, LIMIT] of the tokens that are trained on."""
    return padded([torch.tensor(MASKS[row]) for row in rows]).bool()


def sampler_noise() -> list[Tensor]:
    """By sample, what its sampler's logprobs [completion length] are away from the policy's."""
    generator = torch.Generator().manual_seed(1)
    return [0.6 * torch.randn(sample.completion_len, generator=generator) for sample in SAMPLES]


def padded(rows: Sequence[Tensor]) -> Tensor:
    """Rows of different lengths as [B, LIMIT]."""
    whole = pad_sequence(list(rows), batch_first=True)
    return nn.functional.pad(whole, (0, LIMIT - whole.shape[1]))


def our_gradient(
    model: nn.Module, initial: nn.Module, rows: Sequence[int], advantages: Tensor, options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, int]]:
    """Gradient of an optimizer step of `policy_loss` over `rows`, in two unequal micro-batches, and counts of tokens.

    The frozen logprobs are those of `initial`, which also is the reference of a KL term.
    """
    counts = {"trained": int(completion_masks(rows).sum()), "clipped": 0, "corrected": 0}
    for part in (rows[:3], rows[3:]):
        with torch.no_grad():
            old = completion_logprobs(initial, part)
        loss, metrics = policy_loss(
            completion_logprobs(model, part),
            old,
            advantages[list(part)],
            completion_masks(part),
            num_sequences=len(rows),
            num_tokens=counts["trained"],
            max_completion_tokens=LIMIT,
            ref_logprobs=old if "kl_coef" in options else None,
            sampler_logprobs=old + padded([sampler_noise()[i] for i in part]) if "correction" in options else None,
            **options,
        )
        loss.backward()
        counts["clipped"] += int(metrics["clip_low_sum"] + metrics["clip_high_sum"])
        counts["corrected"] += int(metrics.get("corrected_sum", 0))
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}, counts
