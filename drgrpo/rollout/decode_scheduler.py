"""A scheduler for vLLM that spends little of the host's time on a step in which every request decodes one token.

vLLM's own walks each request through all that a request might need; with 512 of them the GPU waits for it. While all
requests decode, this one asks for a block where one is full and keeps tokens until a completion ends. In every other
state it is vLLM's.
"""

from collections.abc import Iterator
from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.core.sched.utils import check_stop
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

# The releases for GPUs and for CPUs differ in names; what one of them lacks it does not do.
_EXTRAS = (
    *("connector", "ec_connector", "aux_output_connector", "lora_config", "num_spec_tokens", "use_pp"),
    *("log_stats", "needs_kv_cache_zeroing", "enable_return_routed_experts"),
)
_OTHER_QUEUES = ("kv_holding_waiting", "deferred_waiting", "skipped_waiting")


class DecodeStep(SchedulerOutput):
    """A step in which every request decodes one token."""


class DecodeScheduler(Scheduler):
    """Where vLLM waits for a step's tokens before it schedules the next (on a CPU)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        groups = self.kv_cache_config.kv_cache_groups
        self.as_vllm = False  # true leaves every step to vLLM
        self._is_plain = (
            len(groups) == 1
            and type(groups[0].kv_cache_spec) is FullAttentionSpec
            and groups[0].kv_cache_spec.block_size == self.block_size
            and not any(getattr(self, extra, None) for extra in _EXTRAS)
            and self.dcp_world_size == self.pcp_world_size == 1
        )
        self._held: dict[str, list[int]] = {}

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """The next step; vLLM's own, unless all that happens is decoding."""
        requests = self._decoding() if self._is_plain and not self.as_vllm else None
        return self._decode_step(requests) if requests else super().schedule(throttle_prefills)

    def _decoding(self) -> list[Request] | None:
        """The requests that decode next; None where anything else is to do, or where blocks are short."""
        if self._pause_state != PauseState.UNPAUSED or any(getattr(self, queue, None) for queue in _OTHER_QUEUES):
            return None
        if self.waiting and len(self.running) < self.max_num_running_reqs:
            return None
        if len(self.running) > self.max_num_scheduled_tokens:
            return None
        chosen, num_full = [], 0
        for request in self.running:
            computed, pending = request.num_computed_tokens, request.num_output_placeholders
            if pending and computed + 2 - pending >= request.num_prompt_tokens + request.max_tokens:
                continue  # its last token is on its way
            if request.num_tokens + pending - computed != 1 or computed + 1 >= self.max_model_len:
                return None
            if request.is_prefill_chunk or request.use_structured_output or _has_stale_tokens(request):
                return None
            chosen.append(request)
            num_full += computed % self.block_size == 0
        return chosen if num_full <= self.kv_cache_manager.block_pool.get_num_free_blocks() else None

    def _decode_step(self, requests: list[Request]) -> SchedulerOutput:
        """What vLLM's scheduler returns when every one of `requests` decodes one token."""
        self.current_step += 1
        self.kv_cache_manager.new_step_starts()
        names = [request.request_id for request in requests]
        blocks: dict[str, KVCacheBlocks] = dict.fromkeys(names, self.kv_cache_manager.empty_kv_cache_blocks)
        for request in requests:
            if request.num_computed_tokens % self.block_size == 0:
                new = self.kv_cache_manager.allocate_slots(request, 1)
                assert new is not None, "counted before"
                blocks[request.request_id] = new
        counts = dict.fromkeys(names, 1)
        step = DecodeStep.make_empty()
        step.scheduled_cached_reqs = self._make_cached_request_data(requests, [], counts, {}, blocks)
        step.num_scheduled_tokens, step.total_num_scheduled_tokens = counts, len(names)
        step.preempted_req_ids, step.finished_req_ids = self.reset_preempted_req_ids, self.finished_req_ids
        step.free_encoder_mm_hashes = self.encoder_cache_manager.get_freed_mm_hashes()
        if hasattr(step, "num_common_prefix_blocks"):
            step.num_common_prefix_blocks = [0]
        if not self.use_v2_model_runner:
            self.prev_step_scheduled_req_ids.clear()
            self.prev_step_scheduled_req_ids.update(names)
        self._update_after_schedule(step)
        return step

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Append a step's tokens; returns what has ended, and everything after a step that was not all decoding."""
        extras = (model_runner_output.logprobs, model_runner_output.num_nans_in_logits)
        if isinstance(scheduler_output, DecodeStep) and not any(extras) and self._all_run(scheduler_output):
            outputs = list(self._decoded(scheduler_output, model_runner_output))
            return {0: EngineCoreOutputs(outputs=outputs)} if outputs else {}
        result = super().update_from_output(scheduler_output, model_runner_output)
        for outputs_of_client in result.values():
            for output in outputs_of_client.outputs:
                if held := self._held.pop(output.request_id, None):
                    output.new_token_ids = held + output.new_token_ids
        return result

    def _all_run(self, step: SchedulerOutput) -> bool:
        """Whether no request of the step has given way to others meanwhile."""
        found = (self.requests.get(name) for name in step.num_scheduled_tokens)
        return all(
            request.is_finished() or (request.status == RequestStatus.RUNNING and not _has_stale_tokens(request))
            for request in found
            if request is not None
        )

    def _decoded(self, step: SchedulerOutput, sampled: ModelRunnerOutput) -> Iterator[EngineCoreOutput]:
        """Append the tokens of a decoding step; yields the completions that ended or are read as they grow."""
        ended = set()
        for name in step.num_scheduled_tokens:
            request = self.requests.get(name)
            if request is None or request.is_finished():  # it ended while the step was on its way
                continue
            request.num_in_flight_tokens -= 1
            (token,) = sampled.sampled_token_ids[sampled.req_id_to_index[name]]
            request.append_output_token_ids(int(token))
            request.num_output_placeholders -= request.num_output_placeholders > 0
            held = self._held.setdefault(name, [])
            held.append(int(token))
            if check_stop(request, self.max_model_len):
                ended.add(request)
            elif not request.sampling_params.detokenize:
                continue
            yield self._output(request, self._held.pop(name))
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


def _has_stale_tokens(request: Request) -> bool:
    """Whether tokens are on their way that were sampled before the request gave way."""
    return bool(getattr(request, "num_stale_output_tokens", 0) or getattr(request, "async_tokens_to_discard", 0))


class AsyncDecodeScheduler(DecodeScheduler, AsyncScheduler):
    """Where vLLM schedules a step while the one before still runs (on a GPU)."""
