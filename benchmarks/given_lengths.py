"""A limit for each request where the caller of vLLM knows one for all."""

import copy
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any


def with_limits(generate: Callable[..., Any], lengths: Sequence[int]) -> Callable[..., Any]:
    """vLLM's `generate` with the limit lengths[i mod n] for prompt i."""

    def limited(prompts: Sequence[Any], *, sampling_params: Any, **kwargs: Any) -> Any:
        each = [copy.copy(sampling_params) for _ in prompts]
        for parameters, limit in zip(each, cycle(lengths), strict=False):
            parameters.max_tokens = limit
        return generate(prompts, sampling_params=each, **kwargs)

    return limited
