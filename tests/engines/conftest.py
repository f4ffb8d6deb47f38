"""Engines shared by the tests of this directory. Torch in this process is only the reference; engines run in others."""

import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import pytest

from drgrpo.cluster.runtime import engine_environment
from drgrpo.config import TrainConfig
from drgrpo.rollout.sampling import Completion
from drgrpo.settings import Settings
from tests.engines.process import EngineProcess, answered
from tests.engines.samples import LIMIT
from tests.engines.sampling import generate, sample_requests
from tests.tiny_model import build_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the tiny model."""
    return build_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def biased_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2, whose queries, keys and values have biases."""
    return build_tiny_model(tmp_path_factory.mktemp("biased-model"), architecture="Qwen2")


@pytest.fixture(scope="session")
def untied_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with an output head of its own."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.config.tie_word_embeddings = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape) * 0.1)
    path = tmp_path_factory.mktemp("untied-model")
    model.save_pretrained(path)
    return path


def make_config(model: Path, options: Mapping[str, Any] = MappingProxyType({})) -> TrainConfig:
    """A small float32 configuration for the model at `model`; `options` by dotted path."""
    tree: dict[str, Any] = {}
    defaults = {
        "model.path": str(model),
        "model.dtype": "float32",
        "data.prompts_per_step": 3,
        "data.max_prompt_tokens": 256,
        "rollout.group_size": 4,
        "rollout.max_completion_tokens": LIMIT,
        "trainer.completions_per_update": 12,
    }
    for path, value in {**defaults, **options}.items():
        *sections, key = path.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[key] = value
    return TrainConfig.model_validate(tree)


def environment(config: TrainConfig, role: Literal["rollout", "trainer"]) -> dict[str, str]:
    """What the cluster would set for an engine of this role on a CPU."""
    return engine_environment(Settings(device="cpu", num_threads=1), config, role, on_gpu=False)


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class TrainerRanks:
    """All ranks of a trainer: calls go to every rank at once, and rank 0 answers.

    `target` is built in each process from `args`, its rank, the number of ranks and the port of the rendezvous.
    """

    def __init__(self, target: str, *args: Any, world_size: int) -> None:
        port = free_port()
        self.processes = [
            EngineProcess(target, *args, rank, world_size, port, environment=environment(TrainConfig(), "trainer"))
            for rank in range(world_size)
        ]

    def call(self, method: str, *args: Any) -> Any:
        """Rank 0's result of a collective call."""
        for process in self.processes:
            process.start(method, *args)
        answers: dict[EngineProcess, Any] = {}
        try:
            while len(answers) < len(self.processes):
                for process in answered(self.processes, but=answers):
                    answers[process] = process.result()
        except Exception:
            if len(answers) < len(self.processes) - 1:
                self.close()  # the other ranks may wait for the failed one for ever
            raise
        return answers[self.processes[0]]

    def close(self) -> None:
        """End all ranks."""
        for process in self.processes:
            process.close()


@pytest.fixture(scope="session")
def trainers() -> Iterator[Callable[[int], TrainerRanks]]:
    """Trainers by number of ranks, started when first asked for."""
    started: dict[int, TrainerRanks] = {}

    def get(world_size: int) -> TrainerRanks:
        if world_size not in started:
            started[world_size] = TrainerRanks("tests.engines.trainer_worker.TrainerWorker", world_size=world_size)
        return started[world_size]

    yield get
    for ranks in started.values():
        ranks.close()


@pytest.fixture(scope="session")
def sampler(tiny_model: Path) -> Iterator[EngineProcess]:
    """A rollout engine with the tiny model's initial weights, which no test changes."""
    config = make_config(tiny_model)
    engine = EngineProcess(
        "tests.engines.sampler_worker.SamplerWorker", config, tiny_model, environment=environment(config, "rollout")
    )
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def tokenizer(tiny_model: Path) -> Any:
    """The tiny model's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="session")
def completions(sampler: EngineProcess) -> list[Completion]:
    """One completion for each of `sample_requests`."""
    return generate(sampler, sample_requests())
