"""Seconds of the host for a decoding step of the sampler's scheduler, ours beside vLLM's own; no model runs.

python -m benchmarks.scheduler --model DIRECTORY --out FILE

Requests of one prompt length decode together, so that all of them fill a block of keys and values in the same step.
Only the model's directory is read: its configuration, not its weights.
"""

import argparse
import json
import statistics
from array import array
from collections import deque
from pathlib import Path
from typing import Any

import torch
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from benchmarks.clock import now
from benchmarks.machine import hardware, versions
from drgrpo.rollout.decode_scheduler import AsyncDecodeScheduler, DecodeScheduler

BLOCK, PROMPT_TOKENS, DEPTH = 16, 108, 2


def scheduler(kind: type[DecodeScheduler], config: VllmConfig, *, num_blocks: int) -> DecodeScheduler:
    """A scheduler of this kind over `num_blocks` blocks of keys and values, without a model."""
    config.cache_config.enable_prefix_caching = True
    config.cache_config.num_gpu_blocks = num_blocks
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=8, dtype=torch.float32)
    return kind(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(num_blocks, [], [KVCacheGroupSpec(["layer"], spec)]),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK,
        hash_block_size=BLOCK,
    )


def with_room(model: Path, *, num_requests: int, num_tokens: int) -> DecodeScheduler:
    """One with room for all requests at once."""
    length = PROMPT_TOKENS + num_tokens
    arguments = EngineArgs(
        model=str(model), max_model_len=length + 1, max_num_seqs=num_requests, block_size=BLOCK,
        max_num_batched_tokens=num_requests * PROMPT_TOKENS, skip_tokenizer_init=True,
    )  # fmt: skip
    num_blocks = num_requests * (length // BLOCK + 2)
    return scheduler(AsyncDecodeScheduler, arguments.create_engine_config(), num_blocks=num_blocks)


def add_requests(found: DecodeScheduler, *, num_requests: int, num_tokens: int) -> None:
    """Groups of eight share their prompt."""
    hasher = get_request_block_hasher(BLOCK, sha256)
    for number in range(num_requests):
        prompt = [number // 8, *range(PROMPT_TOKENS - 1)]
        params = SamplingParams(max_tokens=num_tokens, detokenize=False, ignore_eos=True)
        found.add_request(Request(str(number), prompt, params, None, block_hasher=hasher))


def sampled(step: SchedulerOutput) -> ModelRunnerOutput:
    """A token for each request of a step."""
    names = list(step.num_scheduled_tokens)
    return ModelRunnerOutput(names, {name: i for i, name in enumerate(names)}, sampled_token_ids=[[7]] * len(names))


def measure(found: DecodeScheduler) -> dict[str, Any]:
    """Milliseconds to schedule a step and to take its tokens, each step after those that read the prompts."""
    schedule, update = array("d"), array("d")
    on_their_way: deque[tuple[SchedulerOutput, ModelRunnerOutput]] = deque()
    while found.has_requests() or on_their_way:
        started = now()
        step = found.schedule()
        schedule.append(1000 * (now() - started))
        if step.total_num_scheduled_tokens:
            on_their_way.append((step, sampled(step)))
        if on_their_way and (len(on_their_way) >= DEPTH or not step.total_num_scheduled_tokens):
            scheduled, tokens = on_their_way.popleft()
            started = now()
            found.update_from_output(scheduled, tokens)
            update.append(1000 * (now() - started))
    times = {"schedule": schedule[DEPTH:], "update": update[DEPTH:]}
    return {
        name: {"mean_ms": statistics.mean(ms), "median_ms": statistics.median(ms), "max_ms": max(ms)}
        for name, ms in times.items()
    } | {"steps": len(schedule)}


def main() -> None:
    """Measure both, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=512, help="of each completion")
    options = parser.parse_args()
    size = {"num_requests": options.requests, "num_tokens": options.tokens}
    init_none_hash(sha256)
    result: dict[str, Any] = {"hardware": hardware(), "versions": versions(), **size}
    for name in ("ours", "vllm"):
        found = with_room(options.model.resolve(), **size)
        found.as_vllm = name == "vllm"
        add_requests(found, **size)
        result[name] = measure(found)
        for part in ("schedule", "update"):
            print(name, part, "  ".join(f"{key} {value:7.3f}" for key, value in result[name][part].items()))
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
