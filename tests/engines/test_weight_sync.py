"""After a push sampler and trainer agree; each step that a push could leave out makes them disagree."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from drgrpo.rollout.sampling import SampleRequest
from drgrpo.trainer.batch import Sample
from tests.engines.conftest import TrainerRanks, environment, free_port, make_config
from tests.engines.process import EngineProcess
from tests.engines.samples import long_prompts, random_samples
from tests.engines.sampling import SAMPLING

pytestmark = pytest.mark.engine

AGREE, DISAGREE = 1e-4, 1e-3
PROBES = [(list(sample.prompt_ids), list(sample.completion_ids)) for sample in random_samples(99)]


@dataclass
class Pair:
    """A trainer and the sampler that it pushes to."""

    trainer: EngineProcess
    sampler: EngineProcess
    version: int = 0
    steps: list[int] = field(default_factory=list)

    def train(self) -> None:
        """Change the policy by one large optimizer step."""
        self.trainer.call("train", random_samples(len(self.steps)), step=len(self.steps))
        self.steps.append(len(self.steps))

    def push(self) -> None:
        """Bring the sampler to the trainer's policy."""
        self.version += 1
        self.trainer.call("push", self.version)

    def difference(self) -> float:
        """Mean |Δlogp| between trainer and sampler on fixed tokens."""
        trainer, sampler = (np.concatenate(engine.call("score", PROBES)) for engine in (self.trainer, self.sampler))
        difference = float(np.abs(trainer - sampler).mean())
        print(f"mean |Δlogp| on fixed tokens {difference:.2e}")
        return difference

    def difference_on_samples(self) -> float:
        """Mean |Δlogp| on freshly sampled tokens of long prompts, which vLLM takes from its prefix cache if it can."""
        requests = [SampleRequest(prompt, seed=seed) for prompt in long_prompts() for seed in range(4)]
        sampled = self.sampler.call("generate", requests, SAMPLING, policy_version=self.version)
        samples = [Sample(i, r.prompt_ids, c.token_ids) for i, (r, c) in enumerate(zip(requests, sampled, strict=True))]
        trainer = np.concatenate(self.trainer.call("score_samples", samples, 1.0))
        difference = float(np.abs(trainer - np.concatenate([c.logprobs for c in sampled])).mean())
        print(f"mean |Δlogp| on sampled tokens {difference:.2e}")
        return difference


@contextmanager
def connected(model: Path) -> Iterator[Pair]:
    """One trainer rank connected to a sampler, both with the weights of `model`."""
    config = make_config(model, {"optimizer.lr": 1e-2})
    rank = "tests.engines.rank_worker.RankWorker"
    sampler = EngineProcess(
        "tests.engines.sampler_worker.SamplerWorker", config, model, environment=environment(config, "rollout")
    )
    trainer = EngineProcess(rank, config, 0, 1, free_port(), environment=environment(config, "trainer"))
    trainer.call("connect_over", sampler.spare)
    yield Pair(trainer, sampler)
    trainer.close()
    sampler.close()


@pytest.fixture(scope="module")
def pair(tiny_model: Path) -> Iterator[Pair]:
    """Both with the initial weights."""
    with connected(tiny_model) as both:
        yield both


def test_sampler_and_trainer_agree_before_the_first_push(pair: Pair) -> None:
    assert pair.difference() <= AGREE
    assert pair.sampler.call("policy_version") == 0


def test_they_agree_after_every_update_and_push(pair: Pair) -> None:
    for _ in range(2):
        pair.train()
        pair.push()
        assert pair.difference() <= AGREE
        assert pair.difference_on_samples() <= AGREE
        assert pair.sampler.call("policy_version") == pair.version


def test_a_skipped_push_is_seen(pair: Pair) -> None:
    pair.train()
    assert pair.difference() > DISAGREE
    with pytest.raises(RuntimeError, match=f"holds policy_version {pair.version}, but {pair.version + 1} was asked"):
        pair.sampler.call("generate", [], SAMPLING, policy_version=pair.version + 1)
    pair.push()
    assert pair.difference() <= AGREE


def test_a_stale_tied_head_is_seen(pair: Pair) -> None:
    pair.sampler.call("leave_tied_head_stale", True)
    pair.train()
    pair.push()
    assert pair.difference() > DISAGREE
    pair.sampler.call("leave_tied_head_stale", False)
    pair.push()
    assert pair.difference() <= AGREE


def test_a_kept_prefix_cache_is_seen_on_sampled_tokens(pair: Pair) -> None:
    pair.push()
    assert pair.difference_on_samples() <= AGREE  # fills the cache
    pair.sampler.call("keep_prefix_cache", True)
    pair.train()
    pair.push()
    assert pair.difference() <= AGREE  # given tokens do not go through the cache
    assert pair.difference_on_samples() > DISAGREE
    pair.sampler.call("keep_prefix_cache", False)
    pair.push()
    assert pair.difference_on_samples() <= AGREE


def test_nothing_of_either_engine_stays_in_shared_memory(pair: Pair) -> None:
    for engine in (pair.trainer, pair.sampler):
        mapped = [line for line in Path(f"/proc/{engine.pid}/maps").read_text().splitlines() if "/dev/shm/" in line]
        ours = [line for line in mapped if "drgrpo-staging-" in line or "deepspeed_allreduce_buffer_" in line]
        assert ours  # in use,
        assert all(line.endswith("(deleted)") for line in ours)  # and without a name that could outlive the process


def test_a_qwen2_agrees_before_and_after_a_push(biased_model: Path) -> None:
    with connected(biased_model) as pair:
        assert pair.difference() <= AGREE
        pair.train()
        assert pair.difference() > DISAGREE
        pair.push()
        assert pair.difference() <= AGREE
        assert pair.difference_on_samples() <= AGREE


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_push_carries_every_weight_bit_for_bit(
    world_size: int, untied_model: Path, trainers: Callable[[int], TrainerRanks]
) -> None:
    pushed = trainers(world_size).call("pushed", make_config(untied_model))
    assert set(pushed["received"]) == set(pushed["weights"])
    assert all(np.array_equal(value, pushed["weights"][name]) for name, value in pushed["received"].items())
    assert pushed["versions"] == {7}
