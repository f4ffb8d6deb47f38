"""Logprob and entropy of given tokens straight from hidden states, never holding more than a chunk of logits.

The backward pass begins with the last chunk, whose logits were kept, and recomputes those of the others: memory is
[chunk, vocabulary] however long the batch is, and a batch of one chunk recomputes nothing. On a GPU kernels of our own
read the 16-bit logits once in each direction.
"""

import importlib
import sys
from typing import Any

import torch
from torch import Tensor, nn


def token_statistics(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Logprob, entropy and log-normaliser [C] float32 of `targets` [C] under `logits` [C, V] / temperature."""
    scaled = logits.float() / temperature
    normalizer = scaled.logsumexp(-1)
    logp = scaled - normalizer[:, None]
    return logp.gather(1, targets[:, None]).squeeze(1), -(logp.exp() * logp).sum(-1), normalizer


def logits_gradient(
    logits: Tensor,
    targets: Tensor,
    normalizer: Tensor,
    grad: Tensor,
    temperature: float,
    entropy: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Gradient [C, V] with respect to `logits` of the logprobs, weighted by `grad` [C]: (onehot - p) / temperature.

    `entropy`: the entropies H [C] and the weights [C] of their gradient -p (log p + H) / temperature, where they are
    trained on.
    """
    logp = logits.float() / temperature - normalizer[:, None]
    probs = logp.exp()
    hit = torch.arange(logits.shape[1], device=logits.device)[None, :] == targets[:, None]
    total = (hit.float() - probs) * (grad[:, None] / temperature)
    if entropy is not None:
        total -= probs * (logp + entropy[0][:, None]) * (entropy[1][:, None] / temperature)
    return total.to(logits.dtype)


def _functions(device: torch.device) -> Any:
    """The module whose `token_statistics` and `logits_gradient` serve this device; Triton is there with a GPU only."""
    if device.type == "cuda":
        return importlib.import_module("drgrpo.trainer.logit_kernels")
    return sys.modules[__name__]


def _add_outer_product(total: Tensor, grad: Tensor, hidden: Tensor) -> None:
    """Add grad [C, V] transposed times hidden [C, D] to `total` [V, D] float32, so that no rounded sums add up."""
    if grad.is_cuda and grad.dtype != torch.float32:
        torch.addmm(total, grad.t(), hidden, torch.float32, out=total)
    else:
        total += grad.t() @ hidden


class _ChunkedLogprobs(torch.autograd.Function):
    """(hidden [C, D], weight [V, D], targets [C]) -> (logprobs [C], entropy [C]), both float32."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, chunk: int, with_entropy: bool
    ) -> tuple[Tensor, Tensor]:
        logprobs = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        entropy, normalizer = torch.empty_like(logprobs), torch.empty_like(logprobs)
        statistics, logits = _functions(hidden.device).token_statistics, None
        for start in range(0, hidden.shape[0], chunk):
            span = slice(start, start + chunk)
            logits = None  # before the next chunk is made
            logits = hidden[span] @ weight.t()
            logprobs[span], entropy[span], normalizer[span] = statistics(logits, targets[span], temperature)
        ctx.save_for_backward(hidden, weight, targets, normalizer, entropy)
        ctx.temperature, ctx.chunk, ctx.with_entropy, ctx.kept = temperature, chunk, with_entropy, logits
        if not with_entropy:
            ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_logprobs, grad_entropy = (grad.contiguous() for grad in grads)
        hidden, weight, targets, normalizer, entropy = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        gradient = _functions(hidden.device).logits_gradient
        kept, ctx.kept = ctx.kept, None  # the gradient overwrites them, so they are used once
        for start in reversed(range(0, hidden.shape[0], ctx.chunk)):
            span = slice(start, start + ctx.chunk)
            trained = (entropy[span], grad_entropy[span]) if ctx.with_entropy else None
            logits, kept = hidden[span] @ weight.t() if kept is None else kept, None
            grad = gradient(logits, targets[span], normalizer[span], grad_logprobs[span], ctx.temperature, trained)
            grad_hidden[span] = grad @ weight
            _add_outer_product(grad_weight, grad, hidden[span])
            del logits, grad
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None, None


class LogprobHead(nn.Module):
    """The output head as a module that owns the (possibly tied) weight.

    ZeRO-3 gathers a module's own parameters around its forward and backward, so the fused logprob has to live here.
    `entropy_gradient`: whether the entropy is trained on, or only watched.
    """

    def __init__(self, weight: nn.Parameter, *, chunk_tokens: int, entropy_gradient: bool) -> None:
        super().__init__()
        self.weight = weight
        self.chunk_tokens, self.entropy_gradient = chunk_tokens, entropy_gradient

    def forward(self, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Logprobs and entropies [C] float32 of `targets` [C] given `hidden` [C, D] at `temperature`."""
        logprobs, entropy = _ChunkedLogprobs.apply(
            hidden, self.weight, targets, temperature, self.chunk_tokens, self.entropy_gradient
        )
        return logprobs, entropy
