"""The trainer's state to and from disk: float32 weights and Adam's moments as full tensors, whatever the rank count.

The shards depend on the model alone, so the tensors of n ranks' checkpoint are, byte for byte, those of a single rank.
"""

import importlib.metadata
import platform
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor, nn

from drgrpo import checkpoints
from drgrpo.checkpoints import CheckpointError, FileRecord
from drgrpo.checkpoints.directory import STATE
from drgrpo.checkpoints.newest import check_files, check_shapes
from drgrpo.trainer import optimizer_state
from drgrpo.trainer.background import Background
from drgrpo.trainer.shards import read_share, rng_name, rng_tensors, set_rng, shard_name
from drgrpo.trainer.weights import buckets, named_weights, parameter_shape

T = TypeVar("T")

REQUIRED = ("step", "policy_version", "optimizer_step", "run_id", "config_digest")
_SHARD_NUMEL = 1 << 28  # 1 GiB of float32
_TIMEOUT = timedelta(hours=6)  # between the ranks' ends of writing; a dead rank is noticed at once
_LIBRARIES = ("torch", "deepspeed", "transformers", "safetensors")


class Checkpointer:
    """Saves and loads one rank's share; every method is a collective over the trainer's ranks.

    Its own process group lets the background threads of the ranks agree while the main threads train.
    """

    def __init__(self, engine: Any, rank: int, world_size: int) -> None:
        self.engine, self.rank, self.world_size = engine, rank, world_size
        self.group = dist.new_group(backend="gloo", timeout=_TIMEOUT)
        self.background = Background()

    def save(self, directory: Path, state: dict[str, Any]) -> dict[str, float]:
        """Copy the state off the device and return; a thread writes it to `directory`, named like step-000012.

        Args:
            directory: On a file system that all ranks share.
            state: JSON values; `REQUIRED` and whatever else is to be read back.

        Raises:
            CheckpointError: The write before this one failed on some rank.
            ValueError: `state` lacks a required key.
        """
        missing = [key for key in REQUIRED if key not in state]
        if missing:
            raise ValueError(f"the state of a checkpoint lacks {', '.join(missing)}")
        started = time.perf_counter()
        self.wait()
        waited = time.perf_counter() - started
        files = self._copy()
        full = {**state, "adam_step": optimizer_state.adam_step(self.engine), **_versions(self.world_size)}
        self.background.start(lambda: self._write(directory, full, files))
        return {"seconds/checkpoint_wait": waited, "seconds/checkpoint_copy": time.perf_counter() - started - waited}

    def wait(self) -> dict[str, float]:
        """Wait until the checkpoint being written is whole; empty when there is none. Raises CheckpointError."""
        return self.background.result() or {}

    def load(self, directory: Path) -> dict[str, Any]:
        """Restore what `save` wrote and return its state; the rank count may have changed.

        Raises:
            CheckpointError: Not whole, or of another model; the engine is untouched.
        """
        self.wait()
        state = self._agree(lambda: self._check(directory))[0]
        optimizer_state.prepare(self.engine, state["adam_step"])
        for kind, number, bucket in self._shards():
            for name, parameter in bucket:
                share = read_share(directory / shard_name(kind, number), name, parameter, self.rank)
                optimizer_state.set_share(parameter, kind, share)
        optimizer_state.refresh(self.engine)
        if (directory / rng_name(self.rank)).exists():
            set_rng(directory / rng_name(self.rank))
        return state

    def shapes(self) -> dict[str, list[int]]:
        """Shapes of the weights by Hugging Face name, for `checkpoints.newest_whole`."""
        return {name: parameter_shape(parameter) for name, parameter in named_weights(self.engine)}

    def _shards(self) -> Iterator[tuple[str, int, list[tuple[str, nn.Parameter]]]]:
        """Kind, number and (name, parameter) of every tensor file, in the same order on every rank."""
        for kind in optimizer_state.KINDS:
            for number, bucket in enumerate(buckets(named_weights(self.engine), max_numel=_SHARD_NUMEL), start=1):
                yield kind, number, bucket

    def _copy(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of this rank's files in host memory; the gathers pass one tensor at a time."""
        files = {rng_name(self.rank): rng_tensors()}
        for index, (kind, number, bucket) in enumerate(self._shards()):
            mine = index % self.world_size == self.rank
            for name, parameter in bucket:
                whole = optimizer_state.whole_tensor(self.engine, parameter, kind)
                if mine:
                    files.setdefault(shard_name(kind, number), {})[name] = whole.cpu()
        return files

    def _write(self, directory: Path, state: dict[str, Any], files: dict[str, dict[str, Tensor]]) -> dict[str, float]:
        started = time.perf_counter()
        partial = self._agree(lambda: checkpoints.begin(directory) if self.rank == 0 else None)[0]
        assert partial is not None
        try:
            written = self._agree(lambda: self._write_files(partial, state, files))
            records = {name: record for part in written for name, record in part.items()}
            self._agree(lambda: checkpoints.publish(partial, directory, records) if self.rank == 0 else None)
        except CheckpointError:
            if self.rank == 0:
                checkpoints.discard(directory)
            raise
        nbytes = sum(record.nbytes for record in records.values())
        return {"seconds/checkpoint_write": time.perf_counter() - started, "checkpoint/bytes": float(nbytes)}

    def _write_files(
        self, partial: Path, state: dict[str, Any], files: dict[str, dict[str, Tensor]]
    ) -> dict[str, FileRecord]:
        records = {STATE: checkpoints.write_json(partial / STATE, state)} if self.rank == 0 else {}
        for name in sorted(files):
            arrays = {key: tensor.numpy() for key, tensor in files[name].items()}
            records[name] = checkpoints.write_tensors(partial / name, arrays)
        return records

    def _check(self, directory: Path) -> dict[str, Any]:
        """Check this rank's share of the files, and the names and shapes of all tensors."""
        files = checkpoints.read_manifest(directory)
        mine = sorted(files)[self.rank :: self.world_size]
        check_files(directory, {name: files[name] for name in mine})
        for kind in optimizer_state.KINDS:
            check_shapes(directory, self.shapes(), kind)
        return checkpoints.read_state(directory)

    def _agree(self, work: Callable[[], T]) -> list[T]:
        """Results of all ranks' `work`, in rank order; an error of one is a CheckpointError on all."""
        outcome: tuple[T | None, str] = (None, "")
        try:
            outcome = (work(), "")
        except Exception as error:
            outcome = (None, f"rank {self.rank}: {error if isinstance(error, CheckpointError) else repr(error)}")
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, outcome, group=self.group)
        errors = list(dict.fromkeys(message for _, message in gathered if message))
        if errors:
            raise CheckpointError("; ".join(errors))
        return [result for result, _ in gathered]


def _versions(world_size: int) -> dict[str, Any]:
    """What wrote the checkpoint; for a person to read."""
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"versions": versions | {"python": platform.python_version()}, "num_ranks": world_size}
