"""A trainer rank as a process of its own: reads sample tables, updates, pushes, exports."""

import json
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors.torch import save_file

from drgrpo.checkpoints.model import copy_description
from drgrpo.config import TrainConfig
from drgrpo.tables import TableRef
from drgrpo.trainer.batch import Sample
from drgrpo.trainer.checkpoint import Checkpointer
from drgrpo.trainer.flops import peak_flops, utilisation
from drgrpo.trainer.samples import read_samples
from drgrpo.trainer.trainer import Trainer
from drgrpo.trainer.weights import buckets, gathered, named_weights, parameter_numel
from drgrpo.trainer.zero import init_process_group
from drgrpo.weight_sync.sender import Sampler, Sender

_SHARD_NUMEL = 1 << 30


class TrainerRank:
    """One rank's life: join the group, connect its sampler, then update and push once per step."""

    def __init__(self, config: TrainConfig, model_path: str, *, rank: int, world_size: int, on_gpu: bool) -> None:
        self.config, self.model_path = config, Path(model_path)
        self.rank, self.world_size = rank, world_size
        self.device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
        self._listener: socket.socket | None = None

    def address(self) -> tuple[str, int]:
        """Host and port of this rank's machine, for the rendezvous of all ranks; held from now on."""
        # A port that is only found free may be another run's when it is needed.
        self._listener = socket.create_server((_own_address(), 0), backlog=2 * self.world_size)
        host, port = self._listener.getsockname()[:2]
        return str(host), int(port)

    def start(self, address: str, port: int) -> None:
        """Join the group and build the ZeRO-3 engine; a collective."""
        if self.config.trainer.deterministic:
            torch.use_deterministic_algorithms(True)
        init_process_group(self.rank, self.world_size, address, port, self.device, listener=self._listener)
        self.trainer = Trainer(
            self.config, self.model_path, rank=self.rank, world_size=self.world_size, device=self.device
        )
        self.checkpointer = Checkpointer(self.trainer.engine, self.rank, self.world_size)

    def connect(self, sampler: Sampler | None) -> None:
        """Take the sampler that this rank pushes to; ranks without one only take part in the gathers."""
        self.sender = Sender(self.trainer.engine, sampler, self.device)

    def push(self, policy_version: int, after: object = None) -> dict[str, float]:
        """Bring the samplers to this policy; a collective. `after`: what has to have ended well before."""
        started = time.perf_counter()
        self.sender.push(policy_version)
        return {"engine_seconds/push": time.perf_counter() - started}

    def update(self, table: TableRef | pa.Table, step: int) -> dict[str, float]:
        """One iteration's optimizer steps over a sample table with advantages, or what is read of it; a collective."""
        started = time.perf_counter()
        samples = read_samples(table)
        metrics = self.trainer.update(samples, step=step)
        seconds = time.perf_counter() - started
        named = {f"update/{key}": value for key, value in metrics.items()}
        return named | self._speed(metrics, seconds) | {"engine_seconds/update": seconds}

    def _speed(self, metrics: dict[str, float], seconds: float) -> dict[str, float]:
        speed = {"update/tokens_per_s": metrics["sequence_tokens"] / seconds}
        if self.device.type != "cuda":
            return speed
        speed["memory/trainer_peak_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        if peak := peak_flops(torch.cuda.get_device_name(self.device)):
            parameters = sum(parameter_numel(p) for _, p in named_weights(self.trainer.engine))
            speed["update/mfu"] = utilisation(
                num_parameters=parameters,
                num_tokens=int(metrics["computed_tokens"]),
                seconds=seconds,
                peak=peak * self.world_size,
            )
        return speed

    def score(self, sequences: list[tuple[list[int], list[int]]], after: object = None) -> list[list[float]]:
        """Logprobs at temperature 1 of given (prompt ids, completion ids); a collective. `after` as in `push`."""
        samples = [Sample(index, prompt, completion) for index, (prompt, completion) in enumerate(sequences)]
        return self.trainer.score(samples)

    def save_checkpoint(self, directory: str, state: dict[str, Any]) -> dict[str, float]:
        """Begin a checkpoint and return once it is off the device; a collective. See `Checkpointer.save`."""
        config = {"config": self.config.model_dump(mode="json")}
        return self.checkpointer.save(Path(directory), config | state)

    def wait_for_checkpoint(self) -> dict[str, float]:
        """Wait until the checkpoint begun last is whole, and raise if it could not be written."""
        return self.checkpointer.wait()

    def load_checkpoint(self, directory: str) -> dict[str, Any]:
        """Restore the trainer from a checkpoint and return the state saved with it; a collective."""
        return self.checkpointer.load(Path(directory))

    def weight_shapes(self) -> dict[str, list[int]]:
        """Shapes by Hugging Face name: which checkpoints are of this model."""
        return self.checkpointer.shapes()

    def export(self, directory: str) -> str:
        """Write the policy as a Hugging Face directory that transformers and vLLM load; a collective.

        Written beside and renamed, so that the directory is whole or absent.
        """
        final = Path(directory)
        partial = final.with_name(final.name + ".partial")
        if self.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        index = self._write_shards(partial)
        if self.rank == 0:
            (partial / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
            copy_description(self.model_path, partial, self.config.model.dtype)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
        return str(final)

    def _write_shards(self, directory: Path) -> dict[str, Any]:
        parts = buckets(named_weights(self.trainer.engine), max_numel=_SHARD_NUMEL)
        weight_map: dict[str, str] = {}
        total = 0
        for number, bucket in enumerate(parts, start=1):
            name = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
            tensors = {key: tensor.cpu().clone() for key, tensor in gathered(bucket) if self.rank == 0}
            if self.rank == 0:
                save_file(tensors, directory / name, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, name)
            total += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        return {"metadata": {"total_size": total}, "weight_map": weight_map}


def _own_address() -> str:
    import ray

    return str(ray.util.get_node_ip_address()) if ray.is_initialized() else "127.0.0.1"
