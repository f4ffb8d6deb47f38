"""One rank of the policy update under ZeRO-3.

Every rank holds the whole list of samples and plans the same micro-batches; each runs its own share. The loss of an
optimizer step is a plain sum over micro-batches and ranks, because its normalisers are global (Dr. GRPO: N * L).
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from drgrpo.config import TrainConfig
from drgrpo.loss import combine_metrics, merge_metrics, summarize_metrics
from drgrpo.schedule import learning_rate
from drgrpo.trainer.batch import Sample
from drgrpo.trainer.microbatches import Microbatches
from drgrpo.trainer.minibatches import minibatches
from drgrpo.trainer.objective import Objective, StepScale
from drgrpo.trainer.policy import Policy
from drgrpo.trainer.zero import build_engine, build_reference, zero_config

T = TypeVar("T")


class Trainer:
    """A ZeRO-3 rank that turns samples with advantages into the next policy."""

    def __init__(
        self, config: TrainConfig, model_path: Path, *, rank: int, world_size: int, device: torch.device
    ) -> None:
        self.config, self.rank, self.world_size, self.device = config, rank, world_size, device
        self.microbatches = Microbatches(config, rank=rank, world_size=world_size, device=device)
        self.engine = build_engine(
            self._load_policy(model_path),
            zero_config(config.model.dtype, optimizer=config.optimizer, trainer=config.trainer, world_size=world_size),
            config.optimizer,
            device,
        )
        reference = (
            build_reference(self._load_policy(model_path), config.model.dtype, device)
            if config.loss.kl_coef > 0
            else None
        )
        self.objective = Objective(config, self.engine, reference, device)
        self.num_skipped = 0

    def _load_policy(self, path: Path) -> Policy:
        return Policy(
            path,
            dtype=getattr(torch, self.config.model.dtype),
            chunk_tokens=self.config.trainer.logprob_chunk_tokens,
            checkpointing=self.config.trainer.gradient_checkpointing,
            entropy_gradient=self.config.loss.entropy_coef > 0,
            fused_kernels=self.microbatches.one_kernel,
            trust_remote_code=self.config.model.trust_remote_code,
        )

    def update(self, samples: Sequence[Sample], *, step: int) -> dict[str, float]:
        """Run the optimizer steps of iteration `step` over `samples`; returns metrics, equal on every rank.

        `loss` and `grad_norm` are means over the optimizer steps, `lr` is the last one's. `sequence_tokens` counts
        the trained sequences, prompts included; `computed_tokens` is less by the prompts that sequences share.

        An optimizer step whose gradient is not finite is skipped and counted. Raises RuntimeError when that happens
        more than `trainer.max_skipped_updates` times in a row.
        """
        parts = minibatches(
            [sample.group_id for sample in samples],
            size=self.config.trainer.completions_per_update,
            seed=self.config.seed,
            step=step,
        )
        # The first minibatch is on-policy: its old logprobs are its own, and cost no forward pass.
        old = self.logprobs(samples, [i for part in parts[1:] for i in self.microbatches.trained(samples, part)])
        sums, norms = [], []
        for index, part in enumerate(parts):
            lr = self._set_learning_rate(step * self.config.updates_per_step + index)
            sums.append(self.accumulate(samples, part, old if index else {}))
            norms.append(self._apply())
        collected = self.read(sums)
        losses = [merged.pop("loss_sum") for merged in collected]
        means = {"loss": sum(losses) / len(losses), "grad_norm": sum(norms) / len(norms), "lr": lr}
        trained = [samples[i] for part in parts for i in self.microbatches.trained(samples, part)]
        return {
            **summarize_metrics(merge_metrics(collected)),
            **means,
            "skipped_updates": float(sum(not math.isfinite(norm) for norm in norms)),
            "trained_sequences": float(len(trained)),
            "trained_tokens": float(sum(sample.completion_len for sample in trained)),
            "sequence_tokens": float(sum(sample.prompt_len + sample.completion_len for sample in trained)),
        }

    def accumulate(self, samples: Sequence[Sample], part: Sequence[int], old: dict[int, Tensor]) -> dict[str, Tensor]:
        """Forward and backward of one optimizer step, without applying it; returns what `read` turns into its sums.

        `old` holds the frozen logprobs of every trained sample; empty, the step is on-policy.
        Afterwards `deepspeed.utils.safe_get_full_grad` gives the exact gradient of the step's loss.
        """
        scale = StepScale(len(part), sum(samples[i].completion_len for i in part))
        plan = self.microbatches.plan(samples, self.microbatches.trained(samples, part))
        losses: list[Tensor] = []
        sums: list[dict[str, Tensor]] = []
        following = self.microbatches.pack(samples, plan[0])
        for index in range(len(plan)):
            batch, rows = following
            self.engine.set_gradient_accumulation_boundary(index == len(plan) - 1)
            loss, metrics = self.objective.loss(samples, batch, rows, old=old, scale=scale)
            # DeepSpeed of several ranks waits for the device at the end of a backward pass: the next is packed before.
            following = self.microbatches.pack(samples, plan[index + 1]) if index + 1 < len(plan) else following
            # DeepSpeed averages over ranks; our loss is already the global sum's share.
            self.engine.backward(loss * self.world_size, scale_wrt_gas=False)
            losses.append(loss.detach())
            num_tokens = torch.full((), batch.input_ids.numel(), dtype=torch.float64, device=self.device)
            sums.append({**metrics, "computed_tokens_count": num_tokens})
        return combine_metrics(sums) | {"loss_sum": torch.stack(losses).sum().double()}

    def read(self, steps: Sequence[dict[str, Tensor]]) -> list[dict[str, float]]:
        """Sums over all ranks of each optimizer step's metrics, and `loss_sum`; a collective.

        For the end of an iteration: between its steps a read would keep the device waiting for the host.
        """
        own = [dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True)) for sums in steps]
        return [merge_metrics(parts) for parts in zip(*self._gather(own), strict=True)]

    def logprobs(self, samples: Sequence[Sample], indices: Sequence[int]) -> dict[int, Tensor]:
        """Logprobs [completion length] float32 of the chosen samples under the present policy, by sample index.

        A rank returns the samples of its own micro-batches only; the plan of later updates may give them to another
        rank, so the results are exchanged.
        """
        if not indices:
            return {}
        found: dict[int, Tensor] = {}
        computed: list[tuple[Tensor, list[int]]] = []
        with torch.no_grad():
            for microbatch in self.microbatches.plan(samples, indices):
                batch, rows = self.microbatches.pack(samples, microbatch)
                logprobs, _ = self.engine(batch, self.config.rollout.temperature)
                computed.append((batch.pad(logprobs), rows))
        for padded, rows in ((values.cpu(), rows) for values, rows in computed):  # only now: a copy waits
            # cloned, because pickling a slice for the exchange would carry the whole micro-batch along
            found |= {i: padded[r, : samples[i].completion_len].clone() for r, i in enumerate(rows)}
        return {i: values for part in self._gather(found) for i, values in part.items()}

    def score(self, samples: Sequence[Sample], *, temperature: float = 1.0) -> list[list[float]]:
        """Logprobs of given completions, the same on every rank: the fixed tokens that watch the mismatch."""
        batch, _ = self.microbatches.pack(samples, [[index] for index in range(len(samples))])
        with torch.no_grad():
            logprobs, _ = self.engine(batch, temperature)
        padded: list[list[float]] = batch.pad(logprobs).tolist()
        return [row[: sample.completion_len] for row, sample in zip(padded, samples, strict=True)]

    def _set_learning_rate(self, optimizer_step: int) -> float:
        optimizer = self.config.optimizer
        lr = learning_rate(
            optimizer_step,
            peak=optimizer.lr,
            schedule=optimizer.schedule,
            warmup_steps=optimizer.warmup_steps,
            total_steps=self.config.total_steps * self.config.updates_per_step,
            min_lr_ratio=optimizer.min_lr_ratio,
        )
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _apply(self) -> float:
        """Clip, step AdamW, clear the gradients; returns the norm before clipping.

        DeepSpeed leaves weights and moments alone when the norm is not finite; the norm is infinite then.
        """
        self.engine.step()
        norm = float(self.engine.get_global_grad_norm() or 0.0)
        self.num_skipped = 0 if math.isfinite(norm) else self.num_skipped + 1
        if self.num_skipped > self.config.trainer.max_skipped_updates:
            raise RuntimeError(
                f"the gradient of {self.num_skipped} optimizer steps in a row was not finite, and none was applied: "
                "lower optimizer.lr, or look at the step's sample table"
            )
        return norm

    def _gather(self, value: T) -> list[T]:
        """The value of every rank; of one, without the copies of an exchange."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered
