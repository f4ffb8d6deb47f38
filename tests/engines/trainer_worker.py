"""A trainer rank inside its own process, with what the tests need to see: the gradient and weights of each step."""

import math
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
from deepspeed.utils import safe_get_full_grad

from drgrpo.config import TrainConfig
from drgrpo.trainer import zero
from drgrpo.trainer.batch import PackedBatch, Sample
from drgrpo.trainer.trainer import Trainer
from drgrpo.trainer.weights import gathered, named_weights
from drgrpo.weight_sync.sender import Sender
from drgrpo.weight_sync.staging import Entry, open_staging, view

Arrays = dict[str, Any]
_CPU = torch.device("cpu")

# The tiny model's tensors are all below the usual threshold; this one leaves only its norms unpartitioned.
zero._PERSIST_SMALL = 1000


class RecordingTrainer(Trainer):
    """A trainer that keeps weights, gradient and loss of every optimizer step, taken before clipping.

    `forwards` holds, for every forward pass of this rank, whether it is for a backward one, and its completion tokens.
    While `is_spoiled` rank 0's passes give NaN for the logprob of their first token.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.records: list[dict[str, Any]] = []
        self.forwards: list[tuple[bool, int]] = []
        self.is_spoiled = False
        self._forward = self.engine.module.forward
        self.engine.module.forward = self._recorded

    def _recorded(self, batch: PackedBatch, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        self.forwards.append((torch.is_grad_enabled(), len(batch.targets)))
        logprobs, entropy = self._forward(batch, temperature)
        if self.is_spoiled and self.rank == 0:
            logprobs = logprobs * torch.ones_like(logprobs).index_fill(0, torch.tensor([0]), math.nan)
        return logprobs, entropy

    def accumulate(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """As the trainer's own, recorded."""
        before = weights(self)
        sums = super().accumulate(*args, **kwargs)
        loss = self.read([sums])[0]["loss_sum"]
        self.records.append({"weights": before, "loss": loss, "gradient": gradients(self)})
        return sums

    def _apply(self) -> float:
        norm = super()._apply()
        self.records[-1]["grad_norm"] = norm
        return norm


class TrainerWorker:
    """Runs many cases in one process, each on a trainer of its own; results are given by rank 0."""

    def __init__(self, rank: int, world_size: int, port: int) -> None:
        self.rank, self.world_size = rank, world_size
        torch.set_num_threads(1)
        zero.init_process_group(rank, world_size, "127.0.0.1", port, _CPU)
        self._trainers: dict[str, RecordingTrainer] = {}

    def _trainer(self, config: TrainConfig) -> RecordingTrainer:
        path = Path(config.model.path)
        return RecordingTrainer(config, path, rank=self.rank, world_size=self.world_size, device=_CPU)

    def _cached(self, config: TrainConfig) -> RecordingTrainer:
        """A trainer whose weights no test changes."""
        key = config.model_dump_json()
        if key not in self._trainers:
            self._trainers[key] = self._trainer(config)
        return self._trainers[key]

    def gradient(self, config: TrainConfig, samples: Sequence[Sample]) -> dict[str, Any]:
        """Loss and gradient of one optimizer step at the initial weights; nothing is applied."""
        trainer = self._cached(config)
        trainer.accumulate(samples, range(len(samples)), {})
        trainer.engine.optimizer.zero_grad()
        return trainer.records.pop() if self.rank == 0 else {}

    def score(self, config: TrainConfig, samples: Sequence[Sample], temperature: float) -> list[list[float]]:
        """Logprobs of the samples' completions under the initial policy."""
        return self._cached(config).score(samples, temperature=temperature)

    def update(
        self,
        config: TrainConfig,
        steps: Sequence[Sequence[Sample]],
        spoiled: Collection[int] = (),
        exchange: bool = False,
        sub_group_size: int = 10**9,
    ) -> dict[str, Any]:
        """Train on each of `steps`; returns a record per optimizer step, metrics per step, and the final weights.

        The trainer's logprobs hold a NaN in the steps `spoiled`. `forwards` are those of rank 0. With `exchange`, one
        rank goes DeepSpeed's way of several. AdamW steps over `sub_group_size` weights at a time.
        """
        with pytest.MonkeyPatch.context() as patch:
            if exchange:
                patch.setattr(zero, "spare_exchange", lambda engine: None)
            patch.setattr("drgrpo.trainer.trainer.zero_config", partial(_grouped_config, sub_group_size))
            trainer = self._trainer(config)
        metrics = []
        for step, samples in enumerate(steps):
            trainer.is_spoiled = step in spoiled
            metrics.append(trainer.update(samples, step=step))
        result = {"records": trainer.records, "metrics": metrics, "forwards": trainer.forwards}
        final = weights(trainer)
        return result | {"weights": final} if self.rank == 0 else {}

    def gathered_for_good(self, config: TrainConfig, steps: Sequence[Sequence[Sample]]) -> tuple[int, bool]:
        """After training on `steps`: hooks around the modules, and whether the weights lie where AdamW writes them."""
        trainer = self._trainer(config)
        for step, samples in enumerate(steps):
            trainer.is_spoiled = step == len(steps) - 1
            trainer.update(samples, step=step)
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        num_hooks = sum(len(getattr(module, kind)) for module in trainer.engine.module.modules() for kind in kinds)
        parameters = list(trainer.engine.module.parameters())
        return num_hooks, all(parameter.data_ptr() == parameter.ds_tensor.data_ptr() for parameter in parameters)

    def attention_passes(self, config: TrainConfig, samples: Sequence[Sample]) -> list[int]:
        """How often each layer's attention runs in an update, recomputation included."""
        trainer = self._trainer(config)
        layers = trainer.engine.module.decoder.layers
        counts = [0] * len(layers)

        def count(index: int, *_: Any) -> None:
            counts[index] += 1

        for index, layer in enumerate(layers):
            layer.self_attn.register_forward_pre_hook(partial(count, index))
        trainer.update(samples, step=0)
        return counts

    def partitioned_shares(self, config: TrainConfig) -> tuple[float, float]:
        """Of the parameters' elements: the share stored on this rank, and the share that ZeRO-3 may leave gathered."""
        parameters = list(self._trainer(config).engine.module.parameters())
        whole = sum(parameter.ds_numel for parameter in parameters)
        stored = sum(parameter.ds_tensor.numel() for parameter in parameters)
        persistent = sum(parameter.ds_numel for parameter in parameters if parameter.ds_persist)
        return stored / whole, persistent / whole

    def accumulation_dtypes(self, config: TrainConfig) -> dict[str, str]:
        """Types of the policy's weights, of the buffers in which gradients accumulate, and of what the API returns."""
        trainer = self._trainer(config)
        trainer.accumulate([Sample(0, [3, 4], [5, 6], 1.0)], [0], {})
        parameter = next(trainer.engine.module.parameters())
        buffers = trainer.engine.optimizer._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition
        return {
            "weights": str(parameter.dtype),
            "buffers": " ".join(sorted({str(buffer.dtype) for buffer in buffers.values()})),
            "gradient": str(safe_get_full_grad(parameter).dtype),
        }

    def pushed(self, config: TrainConfig) -> dict[str, Any]:
        """What a sampler receives in a push from rank 0, and the weights gathered one by one."""
        trainer = self._trainer(config)
        sampler = CollectingSampler() if self.rank == 0 else None
        Sender(trainer.engine, sampler, _CPU).push(7)
        expected = weights(trainer)
        return {"received": sampler.received, "versions": sampler.versions, "weights": expected} if sampler else {}


def _grouped_config(sub_group_size: int, *args: Any, **options: Any) -> dict[str, Any]:
    config = zero.zero_config(*args, **options)
    config["zero_optimization"]["sub_group_size"] = sub_group_size
    return config


class CollectingSampler:
    """A sampler that only keeps what it is sent."""

    def __init__(self) -> None:
        self.received: Arrays = {}
        self.versions: set[int] = set()

    def open_staging(self, handle: dict[str, Any]) -> None:
        """Map the staging buffer."""
        self.buffer = open_staging(handle, _CPU)

    def start_push(self) -> None:
        """Nothing to prepare."""

    def load_bucket(self, entries: list[list[Any]], policy_version: int) -> None:
        """Copy the bucket out of the buffer, as its memory is overwritten by the next one."""
        for name, dtype, shape, offset in entries:
            self.received[name] = view(self.buffer, Entry(name, dtype, tuple(shape), offset)).clone().numpy()
        self.versions.add(policy_version)

    def finish_push(self) -> None:
        """Nothing to finish."""


def weights(trainer: Trainer) -> Arrays:
    """Every weight under its checkpoint name; a collective."""
    return {
        name: value.float().cpu().numpy().copy()
        for weight in named_weights(trainer.engine)
        for name, value in gathered([weight])
    }


def gradients(trainer: Trainer) -> Arrays:
    """The accumulated gradient of every parameter under its checkpoint name; a collective."""
    assert deepspeed.comm.is_initialized()
    named = named_weights(trainer.engine)
    return {name: safe_get_full_grad(parameter).float().cpu().numpy().copy() for name, parameter in named}
