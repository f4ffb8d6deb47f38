"""A scheduler driven as vLLM's engine core drives it, with a model whose tokens are a hash: no model, no engine.

It looks after what a runner would trip over: places and blocks of every request it is told of.
"""

import hashlib
import random
from collections import deque
from pathlib import Path
from typing import Any

from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.core.kv_cache_utils import get_block_hash, get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from benchmarks.scheduler import BLOCK, scheduler
from drgrpo.rollout import decode_scheduler
from drgrpo.rollout.decode_scheduler import DecodeScheduler, DecodeStep

EOS, CONTEXT, AT_ONCE = 1, 256, 24


def sha(value: object) -> bytes:
    """A hash that is the same in every process."""
    return hashlib.sha256(repr(value).encode()).digest()


class Simulation:
    """Requests through one of our schedulers, with up to `depth` steps on their way."""

    def __init__(self, model: Path) -> None:
        arguments = EngineArgs(
            model=str(model), max_model_len=CONTEXT, max_num_seqs=AT_ONCE, max_num_batched_tokens=512, block_size=BLOCK
        )
        self.vllm_config = arguments.create_engine_config()
        init_none_hash(sha)

    def run(self, kind: str, *, seed: int, num_blocks: int, depth: int, as_vllm: bool) -> dict[str, Any]:
        """What each request's completion was and why it ended, and how many steps were all decoding."""
        driver = _Driver(self._scheduler(kind, num_blocks), random.Random(seed), depth)
        driver.scheduler.as_vllm = as_vllm
        return driver.run()

    def _scheduler(self, name: str, num_blocks: int) -> DecodeScheduler:
        return scheduler(getattr(decode_scheduler, name), self.vllm_config, num_blocks=num_blocks)


class _Driver:
    def __init__(self, scheduler: DecodeScheduler, rng: random.Random, depth: int) -> None:
        self.scheduler, self.depth = scheduler, depth
        self.num_decode_steps = self.num_steps = self.num_preemptions = self.num_cached_late = 0
        self.place: dict[str, int] = {}
        self.blocks: dict[str, int] = {}
        self.prompts: dict[str, int] = {}
        self.outputs: dict[str, list[int]] = {}
        self.reasons: dict[str, str] = {}
        self.waiting = deque(self._request(f"r{i}", rng) for i in range(3 * AT_ONCE))
        self.arrivals = {step: rng.randint(1, 9) for step in range(0, 60, 7)}
        self.aborts = {rng.randrange(5, 150) for _ in range(4)}

    def _request(self, name: str, rng: random.Random) -> Request:
        params = SamplingParams(
            max_tokens=rng.choice([1, 2, 16, 33, 60, 90]), detokenize=rng.random() < 0.1, ignore_eos=rng.random() < 0.5
        )
        if not params.ignore_eos:
            params.update_from_generation_config({}, EOS)
        group = int(name[1:]) // 4
        prompt = [5 + (group * 31 + k) % 90 for k in range(10 + (group * 13) % 60)]
        self.prompts[name] = len(prompt)
        hasher = get_request_block_hasher(BLOCK, sha)
        return Request(name, list(prompt), params, None, block_hasher=hasher)

    def run(self) -> dict[str, Any]:
        """Until every request has ended."""
        on_their_way: deque[tuple[SchedulerOutput, ModelRunnerOutput]] = deque()
        while self.waiting or self.scheduler.has_requests() or on_their_way:
            self._arrive()
            step = self.scheduler.schedule()
            if step.total_num_scheduled_tokens or step.finished_req_ids:
                on_their_way.append((step, self._computed(step)))
                self._check_cached_blocks()
            if on_their_way and (len(on_their_way) >= self.depth or not step.total_num_scheduled_tokens):
                self._update(*on_their_way.popleft())
            self.num_steps += 1
            assert self.num_steps < 5000, "the scheduler does not come to an end"
        assert self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == self._num_blocks() - 1
        return {
            "outputs": self.outputs,
            "reasons": self.reasons,
            "decode_steps": self.num_decode_steps,
            "num_preemptions": self.num_preemptions,
            "num_cached_late": self.num_cached_late,
        }

    def _check_cached_blocks(self) -> None:
        """A block that others may share holds what its hash says, and no place that is not computed."""
        (manager,) = self.scheduler.kv_cache_manager.coordinator.single_type_managers
        for request in self.scheduler.running:
            hashes = [block.block_hash for block in manager.req_to_blocks[request.request_id]]
            cached = [get_block_hash(found) for found in hashes if found is not None]
            assert cached == list(request.block_hashes[: len(cached)])
            assert BLOCK * len(cached) <= self.place[request.request_id]
            self.num_cached_late += BLOCK * len(cached) > self.prompts[request.request_id]

    def _num_blocks(self) -> int:
        return int(self.scheduler.kv_cache_manager.block_pool.num_gpu_blocks)

    def _arrive(self) -> None:
        for _ in range(self.arrivals.get(self.num_steps, 0) if self.num_steps < 60 else len(self.waiting)):
            if self.waiting:
                self.scheduler.add_request(self.waiting.popleft())
        if self.num_steps in self.aborts and self.scheduler.running:
            name = self.scheduler.running[len(self.scheduler.running) // 2].request_id
            self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
            self.reasons[name] = "abort"

    def _computed(self, step: SchedulerOutput) -> ModelRunnerOutput:
        """The step's tokens; a place or a block that is not what came before is an error."""
        self.num_decode_steps += isinstance(step, DecodeStep)
        for new in step.scheduled_new_reqs:
            self.place[new.req_id], self.blocks[new.req_id] = new.num_computed_tokens, len(new.block_ids[0])
        cached = step.scheduled_cached_reqs
        for name, place, ids in zip(cached.req_ids, cached.num_computed_tokens, cached.new_block_ids, strict=True):
            if name in cached.resumed_req_ids:
                self.place[name], self.blocks[name] = place, 0
                self.num_preemptions += 1
            assert self.place[name] == place, (name, self.place[name], place)
            self.blocks[name] += len(ids[0]) if ids is not None else 0
        tokens = [self._tokens(name, count) for name, count in step.num_scheduled_tokens.items()]
        names = list(step.num_scheduled_tokens)
        return ModelRunnerOutput(names, {name: i for i, name in enumerate(names)}, sampled_token_ids=tokens)

    def _tokens(self, name: str, count: int) -> list[int]:
        self.place[name] += count
        assert self.blocks[name] * BLOCK >= self.place[name], f"{name} has no block for place {self.place[name]}"
        request = self.scheduler.requests.get(name)
        known = max(self.prompts[name], len(self._known(request)))
        if self.place[name] < known:
            return []  # its prompt is cut in two, or it comes back
        draw = sha((name, self.place[name]))[0]
        return [EOS if draw < 4 else 2 + draw % 80]

    def _known(self, request: Request | None) -> list[int]:
        """Tokens that a runner would have: those of requests that came back are computed again."""
        return list(request.all_token_ids) if request is not None and request.num_preemptions else []

    def _update(self, step: SchedulerOutput, sampled: ModelRunnerOutput) -> None:
        for output in (
            o for outputs in self.scheduler.update_from_output(step, sampled).values() for o in outputs.outputs
        ):
            self.outputs.setdefault(output.request_id, []).extend(output.new_token_ids)
            if output.finish_reason is not None:
                self.reasons[output.request_id] = str(output.finish_reason)
