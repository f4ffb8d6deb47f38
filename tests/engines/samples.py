"""Random samples of the tiny model's vocabulary, the same in every run."""

import random
from dataclasses import replace

from drgrpo.trainer.batch import Sample
from tests.tiny_model import VOCAB_SIZE

# Completion limit, the constant L of the loss.
LIMIT = 24


def random_samples(seed: int = 0, *, num_groups: int = 3, group_size: int = 4) -> list[Sample]:
    """Groups that share a prompt; completions from 1 token to the limit, advantages of both signs."""
    rng = random.Random(f"samples {seed}")
    samples = []
    for group in range(num_groups):
        prompt = [rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randint(3, 12))]
        lengths = [1, LIMIT, *(rng.randint(2, LIMIT - 1) for _ in range(group_size - 2))]
        for length in lengths:
            completion = [rng.randrange(VOCAB_SIZE) for _ in range(length)]
            samples.append(Sample(group, prompt, completion, rng.uniform(0.1, 1.0) * rng.choice([-1, 1])))
    return samples


def long_prompts(num_prompts: int = 3) -> list[list[int]]:
    """Prompts that fill at least one block of vLLM's prefix cache, which has 128 tokens on a CPU."""
    rng = random.Random("long prompts")
    return [[rng.randrange(3, VOCAB_SIZE) for _ in range(140 + 30 * i)] for i in range(num_prompts)]


def with_zero_advantages(samples: list[Sample], which: set[int]) -> list[Sample]:
    """The same samples, some of them without a gradient."""
    return [replace(sample, advantage=0.0) if i in which else sample for i, sample in enumerate(samples)]
