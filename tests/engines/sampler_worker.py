"""The sampler inside its own process, with switches for what a push must not leave out."""

# vLLM has to be the first thing that this process does.
from drgrpo.rollout.engine import RolloutEngine, _parameters  # isort: skip

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from drgrpo.config import TrainConfig
from drgrpo.rollout.sampling import Completion, SampleRequest, Sampling
from drgrpo.weight_sync import receiver

_REPACK = receiver.repack_tied_head


class SamplerWorker(RolloutEngine):
    """A rollout engine that can also be broken."""

    def __init__(self, config: TrainConfig, model_path: Path) -> None:
        super().__init__(config, model_path, on_gpu=False)
        self._reset = self.llm.reset_prefix_cache

    def generate_losing(
        self, lost: Collection[int], requests: Sequence[SampleRequest], sampling: Sampling
    ) -> list[Completion | None]:
        """As `generate`, while vLLM aborts the requests at the positions `lost`."""
        engine, ids = self.llm.llm_engine, list[str]()
        add = engine.add_request

        def aborting(*args: Any, **kwargs: Any) -> str:
            ids.append(add(*args, **kwargs))
            if len(ids) - 1 in lost:
                engine.abort_request(ids[-1:], internal=True)
            return ids[-1]

        engine.add_request = aborting
        try:
            return self.generate(requests, sampling, policy_version=0)
        finally:
            engine.add_request = add

    def prompts_seen(self, prompts: list[list[int]], sampling: Sampling) -> list[list[int]]:
        """The prompt ids that vLLM says it has sampled from."""
        requests = [SampleRequest(prompt, seed=0) for prompt in prompts]
        outputs = self.llm.generate(
            [{"prompt_token_ids": request.prompt_ids} for request in requests],
            [_parameters(sampling, request) for request in requests],
            use_tqdm=False,
        )
        return [list(output.prompt_token_ids) for output in outputs]

    def cached_tokens(self, prompt: list[int], sampling: Sampling) -> int:
        """Tokens of `prompt` that vLLM takes from its prefix cache."""
        request = SampleRequest(prompt, seed=0)
        (output,) = self.llm.generate([{"prompt_token_ids": prompt}], [_parameters(sampling, request)], use_tqdm=False)
        return int(output.num_cached_tokens)

    def decode_steps(
        self, requests: Sequence[SampleRequest], sampling: Sampling
    ) -> tuple[list[Completion | None], int]:
        """As `generate`, and how many steps our own scheduler made."""
        scheduler = self.llm.llm_engine.engine_core.engine_core.scheduler
        made, make = [], scheduler._decode_step
        scheduler._decode_step = lambda chosen: made.append(chosen) or make(chosen)
        try:
            return self.generate(requests, sampling, policy_version=0), len(made)
        finally:
            del scheduler._decode_step

    def decoded(self, token_ids: list[int]) -> str:
        """The text of a completion."""
        return str(self.llm.get_tokenizer().decode(token_ids))

    def schedule_as_vllm(self, wanted: bool) -> None:
        """Whether vLLM's scheduler makes every step."""
        self.llm.llm_engine.engine_core.engine_core.scheduler.as_vllm = wanted

    def leave_free_blocks(self, number: int) -> None:
        """Take blocks of the KV cache away until `number` are free; 0 gives them back."""
        pool = self.llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_manager.block_pool
        if number:
            self._taken = pool.get_new_blocks(pool.get_num_free_blocks() - number)
        else:
            pool.free_blocks(self._taken)

    def leave_tied_head_stale(self, broken: bool) -> None:
        """Whether a push passes the tied output head by."""
        receiver.repack_tied_head = _ignore if broken else _REPACK

    def keep_prefix_cache(self, broken: bool) -> None:
        """Whether a push keeps prefixes that were computed with the old weights."""
        self.llm.reset_prefix_cache = (lambda: True) if broken else self._reset


def _ignore(model: Any) -> None:
    """Leave everything as it is."""
