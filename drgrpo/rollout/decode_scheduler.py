"""A scheduler for vLLM that spends little of the host's time on a step in which every request decodes one token.

vLLM's own walks each request through all that a request might need; with 512 of them the GPU waits for it. While all
requests decode, this one keeps them as arrays, asks for a block where one is full, and keeps tokens until a completion
ends. In every other state it is vLLM's.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.core.sched.utils import check_stop
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from drgrpo.rollout.cohort import Cohort

# The releases for GPUs and for CPUs differ in names; what one of them lacks it does not do.
_EXTRAS = (
    *("connector", "ec_connector", "aux_output_connector", "lora_config", "num_spec_tokens", "use_pp"),
    *("log_stats", "needs_kv_cache_zeroing", "enable_return_routed_experts", "defer_block_free"),
    "enable_kv_cache_events",
)
_OTHER_QUEUES = ("kv_holding_waiting", "deferred_waiting", "skipped_waiting")


class DecodeStep(SchedulerOutput):
    """A step in which every request decodes one token: the `rows` of a `cohort`."""

    cohort: Cohort
    rows: np.ndarray


class DecodeScheduler(Scheduler):
    """Where vLLM waits for a step's tokens before it schedules the next (on a CPU)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        groups = self.kv_cache_config.kv_cache_groups
        self.as_vllm = False  # true leaves every step to vLLM
        self._is_plain = (
            len(groups) == 1
            and type(groups[0].kv_cache_spec) is FullAttentionSpec
            and groups[0].kv_cache_spec.block_size == self.block_size == self.hash_block_size
            and not any(getattr(self, extra, None) for extra in _EXTRAS)
            and self.dcp_world_size == self.pcp_world_size == 1
        )
        self._cohort: Cohort | None = None
        self._held: dict[str, list[int]] = {}
        self.finished_req_ids: set[str]
        self.reset_preempted_req_ids: set[str]

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """The next step; vLLM's own, unless all that happens is decoding."""
        if self._only_decodes():
            if self._cohort is None:
                self._cohort = self._formed()
            if self._cohort is not None and (step := self._decode_step(self._cohort)) is not None:
                return step
        self._dissolve()
        return super().schedule(throttle_prefills)

    def _only_decodes(self) -> bool:
        """Whether no request is to be let in, and nothing else is asked for."""
        if not self._is_plain or self.as_vllm or self._pause_state != PauseState.UNPAUSED:
            return False
        if any(getattr(self, queue, None) for queue in _OTHER_QUEUES):
            return False
        return not (self.waiting and len(self.running) < self.max_num_running_reqs)

    def _formed(self) -> Cohort | None:
        """The running requests, if each of them decodes next."""
        for request in self.running:
            if request.num_tokens + request.num_output_placeholders - request.num_computed_tokens != 1:
                return None
            if request.is_prefill_chunk or request.use_structured_output or _has_stale_tokens(request):
                return None
        is_async = isinstance(self, AsyncScheduler)
        return Cohort(self.running, self._held, max_model_len=self.max_model_len, is_async=is_async)

    def _dissolve(self) -> None:
        """Tell the requests what has happened, before vLLM looks at them."""
        cohort, self._cohort = self._cohort, None
        if cohort is not None:
            for row in np.flatnonzero(cohort.alive):
                request = cohort.catch_up(row, self.current_step + 1)
                if request.num_tokens // self.block_size > len(request.block_hashes):
                    request.update_block_hashes()
                    self.kv_cache_manager.cache_blocks(request, min(request.num_computed_tokens, request.num_tokens))

    def _decode_step(self, cohort: Cohort) -> DecodeStep | None:
        """What vLLM's scheduler returns when all of them decode one token; None where blocks or places are short.

        Nothing is due when all last tokens are on their way; the step is empty then, and the cohort waits for them.
        """
        rows = cohort.due()
        computed = cohort.computed[rows]
        full = np.flatnonzero(computed % self.block_size == 0)
        if len(rows) > self.max_num_scheduled_tokens or computed.max(initial=0) + 1 >= self.max_model_len:
            return None
        if not cohort.alive.any():
            return None
        if len(full) > self.kv_cache_manager.block_pool.get_num_free_blocks():
            return None
        self.current_step += 1
        self.kv_cache_manager.new_step_starts()
        step = DecodeStep.make_empty()
        step.cohort, step.rows = cohort, rows
        step.scheduled_cached_reqs = self._cached_data(cohort, rows, full)
        names = step.scheduled_cached_reqs.req_ids
        step.num_scheduled_tokens, step.total_num_scheduled_tokens = dict.fromkeys(names, 1), len(names)
        step.preempted_req_ids, step.finished_req_ids = self.reset_preempted_req_ids, self.finished_req_ids
        step.free_encoder_mm_hashes = self.encoder_cache_manager.get_freed_mm_hashes()
        if hasattr(step, "num_common_prefix_blocks"):
            step.num_common_prefix_blocks = [0]
        self.finished_req_ids, self.reset_preempted_req_ids = set(), set()
        cohort.advance(rows)
        return step

    def _cached_data(self, cohort: Cohort, rows: np.ndarray, full: np.ndarray) -> CachedRequestData:
        """What the model's runner is told of the requests; those at `full` of the rows get another block."""
        names = cohort.chosen_names(rows)
        blocks: list[tuple[list[int]] | None] = [None] * len(rows)
        # `allocate_slots` would give a block too, but 512 requests that fill one at the same time keep the device
        # waiting for 12 ms then.
        owned = self.kv_cache_manager.coordinator.single_type_managers[0].req_to_blocks
        for place, block in zip(full, self.kv_cache_manager.block_pool.get_new_blocks(len(full)), strict=True):
            owned[names[place]].append(block)
            blocks[place] = ([block.block_id],)
        unknown: dict[str, list[int]] = {}
        if not self.use_v2_model_runner:
            for name in {*names} - self.prev_step_scheduled_req_ids:
                row = cohort.names.index(name)
                unknown[name] = cohort.catch_up(row, self.current_step).all_token_ids.copy()
            self.prev_step_scheduled_req_ids.clear()
            self.prev_step_scheduled_req_ids.update(names)
        return CachedRequestData(
            req_ids=list(names),
            resumed_req_ids=set(),
            new_token_ids=[],
            all_token_ids=unknown,
            new_block_ids=blocks,
            num_computed_tokens=cohort.computed[rows].tolist(),
            num_output_tokens=cohort.num_output_tokens(rows).tolist(),
        )

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Append a step's tokens; returns what has ended, and everything after a step that was not all decoding."""
        extras = (model_runner_output.logprobs, model_runner_output.num_nans_in_logits)
        if isinstance(scheduler_output, DecodeStep) and self._cohort is not None and not any(extras):
            rows = self._rows(scheduler_output, self._cohort)
            token_ids = _one_each(scheduler_output, model_runner_output)
            if rows is not None and token_ids is not None:
                outputs = list(self._decoded(self._cohort, rows[rows >= 0], token_ids[rows >= 0]))
                return {0: EngineCoreOutputs(outputs=outputs)} if outputs else {}
        self._dissolve()
        result = super().update_from_output(scheduler_output, model_runner_output)
        for output in itertools.chain(*(outputs_of_client.outputs for outputs_of_client in result.values())):
            if held := self._held.pop(output.request_id, None):
                output.new_token_ids = held + output.new_token_ids
        return result

    def _rows(self, step: DecodeStep, cohort: Cohort) -> np.ndarray | None:
        if step.cohort is cohort:
            return step.rows
        return cohort.rows_of(step.num_scheduled_tokens, self.requests)

    def _decoded(self, cohort: Cohort, rows: np.ndarray, token_ids: np.ndarray) -> Iterator[EngineCoreOutput]:
        """Append the tokens of a decoding step; yields the completions that ended or are read as they grow."""
        ended = set()
        for row in cohort.receive(rows, token_ids):
            request = cohort.catch_up(row, self.current_step + 1)
            if check_stop(request, self.max_model_len):
                cohort.alive[row] = False
                ended.add(request)
            else:
                request.update_block_hashes()
                if not cohort.watched[row]:
                    continue
            yield self._output(request, self._held.pop(request.request_id))
        if ended:
            self.running: list[Request] = [request for request in self.running if request not in ended]

    def _output(self, request: Request, token_ids: list[int]) -> EngineCoreOutput:
        """`token_ids` of a request, and its end where it has ended."""
        reason = request.get_finished_reason()
        if reason is not None:
            self._free_request(request)
        return EngineCoreOutput(
            request_id=request.request_id,
            new_token_ids=token_ids,
            finish_reason=reason,
            stop_reason=request.stop_reason,
            events=request.take_events(),
        )

    def finish_requests(self, request_ids: Any, finished_status: RequestStatus) -> Any:
        """Abort requests."""
        self._dissolve()
        aborted = super().finish_requests(request_ids, finished_status)
        self._held = {name: token_ids for name, token_ids in self._held.items() if name in self.requests}
        return aborted

    def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> bool:
        """Forget cached prefixes."""
        self._dissolve()
        return super().reset_prefix_cache(*args, **kwargs)


def _one_each(step: DecodeStep, sampled: ModelRunnerOutput) -> np.ndarray | None:
    """The token of each of a step's requests, in their order; None unless each has one."""
    token_ids, names = sampled.sampled_token_ids, step.scheduled_cached_reqs.req_ids
    if sampled.req_ids != names:
        token_ids = [token_ids[sampled.req_id_to_index[name]] for name in names]
    found = np.array(list(itertools.chain.from_iterable(token_ids)), dtype=np.int64)
    return found if len(found) == len(names) and all(token_ids) else None


def _has_stale_tokens(request: Request) -> bool:
    """Whether tokens are on their way that were sampled before the request gave way."""
    return bool(getattr(request, "num_stale_output_tokens", 0) or getattr(request, "async_tokens_to_discard", 0))


class AsyncDecodeScheduler(DecodeScheduler, AsyncScheduler):
    """Where vLLM schedules a step while the one before still runs (on a GPU)."""
