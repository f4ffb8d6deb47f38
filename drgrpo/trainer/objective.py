"""The loss of one micro-batch: the policy's forward pass, its reference's, and the pure `policy_loss`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from drgrpo.config import TrainConfig
from drgrpo.loss import policy_loss
from drgrpo.trainer.batch import PackedBatch, Sample
from drgrpo.trainer.layout import to_device


@dataclass(frozen=True, slots=True)
class StepScale:
    """Global normalisers of one optimizer step: N sequences and their completion tokens, dropped ones included."""

    num_sequences: int
    num_tokens: int


class Objective:
    """Turns a packed micro-batch into its share of the optimizer step's loss."""

    def __init__(self, config: TrainConfig, engine: Any, reference: Any | None, device: torch.device) -> None:
        self.config, self.engine, self.reference, self.device = config, engine, reference, device

    def loss(
        self,
        samples: Sequence[Sample],
        batch: PackedBatch,
        rows: Sequence[int],
        *,
        old: dict[int, Tensor],
        scale: StepScale,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of `batch`, whose rows are the samples `rows`; without rows both count nothing.

        `old` holds the frozen logprobs by sample index; empty, the micro-batch is on-policy.
        """
        temperature, loss = self.config.rollout.temperature, self.config.loss
        reference = self._reference_logprobs(batch, temperature)  # before the policy's logits are kept
        logprobs, entropy = self.engine(batch, temperature)
        padded = batch.pad(logprobs)
        mask = batch.mask() if rows else torch.zeros_like(padded, dtype=torch.bool)
        total, metrics = policy_loss(
            padded,
            _rows(old, rows, padded) if old else padded.detach(),
            to_device(torch.tensor([samples[i].advantage for i in rows] or [0.0]), self.device),
            mask,
            aggregation=loss.aggregation,
            num_sequences=scale.num_sequences,
            num_tokens=scale.num_tokens,
            max_completion_tokens=self.config.rollout.max_completion_tokens,
            clip_eps_low=loss.clip_eps_low,
            clip_eps_high=loss.clip_eps_high,
            sampler_logprobs=self._sampler_logprobs(samples, rows, padded),
            correction=loss.correction,
            correction_cap=loss.correction_cap,
            ref_logprobs=reference,
            kl_coef=loss.kl_coef,
            kl_estimator=loss.kl_estimator,
            entropy=batch.pad(entropy),
            entropy_coef=loss.entropy_coef,
        )
        return total, metrics | {"nll_sum": -torch.where(mask, padded.detach(), 0.0).sum(dtype=torch.float64)}

    def _sampler_logprobs(self, samples: Sequence[Sample], rows: Sequence[int], like: Tensor) -> Tensor | None:
        if not rows:
            return None if self.config.loss.correction == "off" else torch.zeros_like(like)
        if not len(samples[rows[0]].sampler_logprobs):
            return None
        return _rows({i: torch.as_tensor(samples[i].sampler_logprobs) for i in rows}, rows, like)

    def _reference_logprobs(self, batch: PackedBatch, temperature: float) -> Tensor | None:
        if self.reference is None:
            return None
        with torch.no_grad():
            logprobs, _ = self.reference(batch, temperature)
        return batch.pad(logprobs)


def _rows(values: dict[int, Tensor], rows: Sequence[int], like: Tensor) -> Tensor:
    """Per-sample vectors stacked into the padded [B, L] view."""
    padded = torch.zeros(like.shape, dtype=torch.float32)
    for row, index in enumerate(rows):
        padded[row, : len(values[index])] = values[index]
    return to_device(padded, like.device)
