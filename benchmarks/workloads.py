"""The workloads as training configurations, and the made-up problems that they sample from."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NUM_PROBLEMS = {"train": 1024, "test": 16}

_COMMON: dict[str, dict[str, Any]] = {
    "model": {"dtype": "bfloat16"},
    "data": {"prompt_style": "plain", "max_prompt_tokens": 160},
    "reward": {"functions": {"benchmarks.hash_reward.reward": 1.0}, "truncated_reward": "keep"},
    "rollout": {"group_size": 8, "ignore_eos": True, "gpu_memory_utilization": 0.25},
    "trainer": {"tokens_per_microbatch": 21100, "gradient_checkpointing": 0.0, "logprob_chunk_tokens": 21100},
    "evaluation": {
        "every_steps": 0,
        "num_problems": 4,
        "samples_per_problem": 1,
        "greedy": False,
        "max_completion_tokens": 8,
    },
    "checkpoint": {"export": False, "every_minutes": 0},
}


@dataclass(frozen=True)
class Workload:
    """What is trained on in a step.

    Attributes:
        model: A shape of `benchmarks.shapes`, or a model that a run can name.
        num_words: Words of a made-up question; 0: real problems, from a directory that the caller names.
        sections: What differs from the values that all workloads have.
    """

    model: str
    num_words: int
    sections: Mapping[str, Mapping[str, Any]]

    def config(self, model: Path, data: Path) -> dict[str, Any]:
        """A training configuration; `data` holds train.jsonl and test.jsonl."""
        config = {name: _COMMON.get(name, {}) | dict(self.sections.get(name, {})) for name in _COMMON}
        config["model"] = config["model"] | {"path": str(model)}
        config["data"] = config["data"] | {"train": str(data), "eval": str(data)}
        return config

    def public(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """`config` without this machine's paths, and long lists summed up."""
        data = f"{self.num_words} made-up words" if self.num_words else "real problems"
        lengths = config["rollout"].get("forced_lengths", [])
        listed = {"forced_lengths": f"{len(lengths)} lengths, {sum(lengths)} tokens"} if lengths else {}
        named = {"model": {"path": self.model}, "data": {"train": data, "eval": data}, "rollout": listed}
        return {name: {**value, **named[name]} if name in named else value for name, value in config.items()}


def write_problems(directory: Path, *, num_words: int) -> Path:
    """train.jsonl and test.jsonl of made-up questions of `num_words` words in `directory`; deterministic."""
    directory.mkdir(parents=True, exist_ok=True)
    words = _WORDS.split()
    for split, count in NUM_PROBLEMS.items():
        rng = random.Random(split)
        questions = (" ".join(rng.choice(words) for _ in range(num_words)) for _ in range(count))
        rows = [json.dumps({"question": question, "answer": str(n)}) + "\n" for n, question in enumerate(questions)]
        (directory / f"{split}.jsonl").write_text("".join(rows))
    return directory


def spread_lengths(num_completions: int, *, limit: int) -> list[int]:
    """Completion lengths with a long tail: log-normal, mean about 200, a few cut at `limit`; deterministic."""
    rng = random.Random(0)
    return [max(16, min(limit, round(rng.lognormvariate(5.05, 0.7)))) for _ in range(num_completions)]


WORKLOADS = {
    # 64 prompts x 8 completions x exactly 512 tokens, one optimizer step.
    "a": Workload(
        "qwen2.5-1.5b",
        108,
        {
            "data": {"prompts_per_step": 64},
            "rollout": {
                "max_completion_tokens": 512,
                "max_num_seqs": 512,
                "gpu_memory_utilization": 0.2,
                "kv_cache_gib": 9,  # all sequences at once, of which groups share their prompt
            },
            "trainer": {"completions_per_update": 512},
        },
    ),
    # 128 prompts x 8 completions of 16 to 1,024 tokens, eight optimizer steps.
    "b": Workload(
        "qwen2.5-1.5b",
        108,
        {
            "data": {"prompts_per_step": 128},
            "rollout": {
                "max_completion_tokens": 1024,
                "max_num_seqs": 1024,
                "forced_lengths": spread_lengths(1024, limit=1024),
                "gpu_memory_utilization": 0.2,
                "kv_cache_gib": 10,
            },
            "trainer": {"completions_per_update": 128},
        },
    ),
    # A small model on real problems, whose completions end where the model ends them.
    "c": Workload(
        "smollm2",
        0,
        {
            "data": {"prompt_style": "chat", "max_prompt_tokens": 512, "prompts_per_step": 128},
            "rollout": {"max_completion_tokens": 512, "max_num_seqs": 1024, "ignore_eos": False},
            # A small model's update waits for the host to start kernels: few large micro-batches.
            "trainer": {"completions_per_update": 128, "tokens_per_microbatch": 65536},
        },
    ),
    # A miniature for a CPU: it proves the harness, not a speed.
    "mini": Workload(
        "tiny",
        12,
        {
            "model": {"dtype": "float32"},
            "data": {"prompts_per_step": 4},
            "rollout": {
                "group_size": 4,
                "max_completion_tokens": 16,
                "max_num_seqs": 64,
                "forced_lengths": [4, 8, 12, 16],
            },
            "trainer": {"completions_per_update": 8, "tokens_per_microbatch": 1024},
        },
    ),
}

_WORDS = """time year people way day man thing woman life child world school state family student group country problem
hand part place case week company system program question work government number night point home water room mother
area money story fact month lot right study book eye job word business issue side kind head house service friend"""
