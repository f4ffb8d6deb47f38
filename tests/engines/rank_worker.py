"""A trainer rank as a run has it, whose sampler is reached over a pipe instead of Ray."""

from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from drgrpo.config import TrainConfig
from drgrpo.trainer import rank as rank_module
from drgrpo.trainer.batch import Sample
from drgrpo.trainer.rank import TrainerRank
from drgrpo.trainer.weights import gathered, named_weights
from tests.engines.process import receive


class RankWorker(TrainerRank):
    """A trainer rank that has joined its group."""

    def __init__(self, config: TrainConfig, rank: int, world_size: int, port: int) -> None:
        super().__init__(config, config.model.path, rank=rank, world_size=world_size, on_gpu=False)
        self.start("127.0.0.1", port)

    def connect_over(self, connection: Connection) -> None:
        """Take the sampler at the other end."""
        self.connect(PipeSampler(connection))

    def train(self, samples: Sequence[Sample], step: int) -> dict[str, float]:
        """One iteration over samples that are in no table; a collective."""
        return self.trainer.update(samples, step=step)

    def score_samples(self, samples: Sequence[Sample], temperature: float) -> list[list[float]]:
        """Logprobs of the samples' completions; a collective."""
        return self.trainer.score(samples, temperature=temperature)

    def whole_weights(self) -> dict[str, Any]:
        """Every weight under its checkpoint name, in its own type; a collective."""
        weights = named_weights(self.trainer.engine)
        return {name: value.numpy().copy() for name, value in gathered(weights)}

    def export_with_full_disk(self, directory: str) -> None:
        """An export that fails half-way, after the weights and before the tokenizer."""
        copy = rank_module.copy_description
        rank_module.copy_description = _no_space
        try:
            self.export(directory)
        finally:
            rank_module.copy_description = copy


def _no_space(source: Path, target: Path, dtype: str) -> None:
    raise OSError("no space left on device")


class PipeSampler:
    """A sampler in another process as the trainer's `drgrpo.weight_sync.sender.Sampler`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def _call(self, method: str, *args: Any) -> Any:
        self._connection.send((method, args, {}))
        return receive(self._connection)

    def open_staging(self, handle: dict[str, Any]) -> None:
        """Map the trainer's staging buffer."""
        self._call("open_staging", handle)

    def start_push(self) -> None:
        """Begin a push."""
        self._call("start_push")

    def load_bucket(self, entries: list[list[Any]], policy_version: int) -> None:
        """Load the tensors that now lie in the staging buffer."""
        self._call("load_bucket", entries, policy_version)

    def finish_push(self) -> None:
        """Make the pushed weights current."""
        self._call("finish_push")
