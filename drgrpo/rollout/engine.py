"""One vLLM engine. It must be the first thing its process does: torch work before it can hang vLLM's fork."""

import importlib
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams

from drgrpo.config import TrainConfig
from drgrpo.rollout.sampling import Completion, SampleRequest, Sampling

_CPU_BATCH_TOKENS = 8192
_EXTENSION = "drgrpo.weight_sync.receiver.WorkerExtension"
_SCHEDULERS = "drgrpo.rollout.decode_scheduler"


class RolloutEngine:
    """Samples completions from the current policy and takes pushes of the next one."""

    def __init__(self, config: TrainConfig, model_path: Path, *, on_gpu: bool) -> None:
        rollout = config.rollout
        gpu_options: dict[str, Any] = {
            "gpu_memory_utilization": rollout.gpu_memory_utilization,
            "kv_cache_memory_bytes": int(rollout.kv_cache_gib * 2**30) or None,
            "enable_sleep_mode": config.placement.sleep,
            "compilation_config": {"max_cudagraph_capture_size": min(rollout.max_num_seqs, 1024)},
            "scheduler_cls": f"{_SCHEDULERS}.AsyncDecodeScheduler",
        }
        # vLLM's CPU runner cannot rewind a seeded request whose prompt was cut in two, so prompts are never cut.
        cpu_options: dict[str, Any] = {
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(_CPU_BATCH_TOKENS, config.max_model_len),
            "scheduler_cls": f"{_SCHEDULERS}.DecodeScheduler",
        }
        if on_gpu:  # where Triton is
            importlib.import_module("drgrpo.rollout.draw_kernel").install()
        self.llm = LLM(
            model=str(model_path),
            dtype=config.model.dtype,
            trust_remote_code=config.model.trust_remote_code,
            max_model_len=config.max_model_len,
            max_num_seqs=rollout.max_num_seqs,
            enforce_eager=rollout.enforce_eager or not on_gpu,
            enable_prefix_caching=rollout.prefix_caching,
            logprobs_mode="processed_logprobs",
            seed=config.seed,
            worker_extension_cls=_EXTENSION,
            weight_transfer_config={"backend": "drgrpo"},
            disable_log_stats=True,
            **(gpu_options if on_gpu else cpu_options),
        )
        self._generation_s = 0.0

    def generate(
        self,
        requests: Sequence[SampleRequest],
        sampling: Sampling,
        *,
        policy_version: int,
        part: int = 0,
        num_parts: int = 1,
        after: object = None,
    ) -> list[Completion | None]:
        """The completion of each request of this engine's part, in order; None where vLLM lost it.

        Of `after` nothing is used: it is what has to be there before the call begins.
        Raises RuntimeError when the engine samples from another policy than `policy_version`.
        """
        self._check_version(policy_version)
        started = time.perf_counter()
        size = -(-len(requests) // num_parts)
        requests = requests[part * size : (part + 1) * size]
        ids = self.llm.enqueue(
            [{"prompt_token_ids": request.prompt_ids} for request in requests],
            [_parameters(sampling, request) for request in requests],
            use_tqdm=False,
        )
        # An aborted request leaves a gap, so position tells nothing. A queued id has a random suffix, an output's none.
        outputs = {output.request_id: output.outputs[0] for output in self.llm.wait_for_completion(use_tqdm=False)}
        self._generation_s = time.perf_counter() - started
        return [_completion(outputs.get(name.partition("-")[0]), sampling.logprobs) for name in ids]

    def generation_seconds(self) -> float:
        """How long vLLM took for the last `generate`; waiting before and after it does not count."""
        return self._generation_s

    def score(self, sequences: Sequence[tuple[list[int], list[int]]], after: object = None) -> list[list[float]]:
        """Logprobs of given (prompt ids, completion ids) at temperature 1, a float per completion token.

        `after` as in `generate`.
        """
        outputs = self.llm.generate(
            [{"prompt_token_ids": prompt + completion} for prompt, completion in sequences],
            SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False),
            use_tqdm=False,
        )
        return [
            [
                entry[token].logprob
                for token, entry in zip(completion, output.prompt_logprobs[len(prompt) :], strict=True)
            ]
            for (prompt, completion), output in zip(sequences, outputs, strict=True)
        ]

    def policy_version(self) -> int:
        """The version that the engine's only worker samples from."""
        (version,) = self.llm.collective_rpc("policy_version")
        return int(version)

    def _check_version(self, expected: int) -> None:
        if (held := self.policy_version()) != expected:
            raise RuntimeError(f"the sampler holds policy_version {held}, but {expected} was asked for")

    def open_staging(self, handle: dict[str, Any]) -> None:
        """Map the trainer's staging buffer."""
        self.llm.init_weight_transfer_engine({"init_info": {"handle": handle}})

    def start_push(self) -> None:
        """Begin a push."""
        self.llm.start_weight_update()

    def load_bucket(self, entries: list[list[Any]], policy_version: int) -> None:
        """Load the tensors that now lie in the staging buffer."""
        self.llm.update_weights({"update_info": {"entries": entries, "policy_version": policy_version}})

    def finish_push(self) -> None:
        """Make the pushed weights current; prefixes cached under the old ones are forgotten."""
        self.llm.finish_weight_update()
        self.llm.reset_prefix_cache()

    def sleep(self) -> None:
        """Free the KV cache's device memory, keeping the weights on the host."""
        self.llm.sleep(level=1)

    def wake_up(self) -> None:
        """Take the device memory back."""
        self.llm.wake_up()


def _parameters(sampling: Sampling, request: SampleRequest) -> SamplingParams:
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_tokens=request.max_tokens or sampling.max_tokens,
        seed=request.seed,
        stop=list(sampling.stop),
        include_stop_str_in_output=True,
        ignore_eos=sampling.ignore_eos,
        logprobs=0 if sampling.logprobs else None,
        # Text is decoded afterwards in one batch; only stop strings need it token by token.
        detokenize=bool(sampling.stop),
        skip_special_tokens=False,
        skip_clone=True,  # nobody else holds it, and a deep copy for each request delays the first token
    )


def _completion(output: Any | None, with_logprobs: bool) -> Completion | None:
    if output is None or output.finish_reason not in ("stop", "length"):  # aborted, or an error inside vLLM
        return None
    token_ids = array("i", output.token_ids)
    logprobs = (
        [entry[token].logprob for token, entry in zip(token_ids, output.logprobs, strict=True)]
        if with_logprobs
        else None
    )
    return Completion(token_ids, output.finish_reason, logprobs)
