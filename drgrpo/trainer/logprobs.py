"""Logprob and entropy of given tokens straight from hidden states, never holding more than a chunk of logits.

The backward pass recomputes each chunk's logits, so memory is [chunk, vocabulary] however long the batch is. On a GPU
the element-wise work on a chunk is compiled into kernels that read the 16-bit logits once or twice.
"""

from typing import Any

import torch
from torch import Tensor, nn

from drgrpo.trainer.compiled import compiled


def token_statistics(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Logprob, entropy and log-normaliser [C] float32 of `targets` [C] under `logits` [C, V] / temperature."""
    scaled = logits.float() / temperature
    normalizer = scaled.logsumexp(-1)
    logp = scaled - normalizer[:, None]
    return logp.gather(1, targets[:, None]).squeeze(1), -(logp.exp() * logp).sum(-1), normalizer


def logits_gradient(logits: Tensor, targets: Tensor, normalizer: Tensor, grad: Tensor, temperature: float) -> Tensor:
    """Gradient [C, V] of the logprobs with respect to `logits`, weighted by `grad` [C]: (onehot - p) / temperature."""
    probs = torch.exp(logits.float() / temperature - normalizer[:, None])
    hit = torch.arange(logits.shape[1], device=logits.device)[None, :] == targets[:, None]
    return ((hit.float() - probs) * (grad[:, None] / temperature)).to(logits.dtype)


def entropy_gradient(logits: Tensor, normalizer: Tensor, entropy: Tensor, grad: Tensor, temperature: float) -> Tensor:
    """Gradient [C, V] of the entropies with respect to `logits`: -p (log p + H) / temperature."""
    logp = logits.float() / temperature - normalizer[:, None]
    return (-logp.exp() * (logp + entropy[:, None]) * (grad[:, None] / temperature)).to(logits.dtype)


def _outer_sum(grad: Tensor, hidden: Tensor) -> Tensor:
    """grad [C, V] transposed times hidden [C, D] in float32, so that chunks do not add up rounded sums."""
    if grad.is_cuda and grad.dtype != torch.float32:
        return torch.mm(grad.t(), hidden, out_dtype=torch.float32)
    return grad.t() @ hidden


class _ChunkedLogprobs(torch.autograd.Function):
    """(hidden [C, D], weight [V, D], targets [C]) -> (logprobs [C], entropy [C]), both float32."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, chunk: int, with_entropy: bool
    ) -> tuple[Tensor, Tensor]:
        logprobs = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        entropy, normalizer = torch.empty_like(logprobs), torch.empty_like(logprobs)
        statistics = compiled(token_statistics, hidden.device)
        for start in range(0, hidden.shape[0], chunk):
            span = slice(start, start + chunk)
            logits = hidden[span] @ weight.t()
            logprobs[span], entropy[span], normalizer[span] = statistics(logits, targets[span], temperature)
        ctx.save_for_backward(hidden, weight, targets, normalizer, entropy)
        ctx.temperature, ctx.chunk, ctx.with_entropy = temperature, chunk, with_entropy
        if not with_entropy:
            ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_logprobs, grad_entropy = grads
        hidden, weight, targets, normalizer, entropy = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        for start in range(0, hidden.shape[0], ctx.chunk):
            span = slice(start, start + ctx.chunk)
            logits = hidden[span] @ weight.t()
            grad = compiled(logits_gradient, hidden.device)(
                logits, targets[span], normalizer[span], grad_logprobs[span], ctx.temperature
            )
            if ctx.with_entropy:
                grad = grad + compiled(entropy_gradient, hidden.device)(
                    logits, normalizer[span], entropy[span], grad_entropy[span], ctx.temperature
                )
            grad_hidden[span] = grad @ weight
            grad_weight += _outer_sum(grad, hidden[span])
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
