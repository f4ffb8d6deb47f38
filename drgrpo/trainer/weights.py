"""The policy's full weights, gathered bucket by bucket, under their Hugging Face names."""

from collections.abc import Iterator
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn


def parameter_numel(parameter: nn.Parameter) -> int:
    """Elements of the whole parameter; `numel()` is 0 while ZeRO-3 has it partitioned."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def parameter_shape(parameter: nn.Parameter) -> list[int]:
    """Shape of the whole parameter."""
    return list(getattr(parameter, "ds_shape", parameter.shape))


def named_weights(engine: Any) -> list[tuple[str, nn.Parameter]]:
    """(checkpoint name, parameter) of everything a checkpoint holds; a tied head is left out."""
    policy = engine.module
    named = ((policy.checkpoint_name(name), parameter) for name, parameter in policy.named_parameters())
    return [(name, parameter) for name, parameter in named if name is not None]


def buckets(weights: list[tuple[str, nn.Parameter]], *, max_numel: int) -> list[list[tuple[str, nn.Parameter]]]:
    """Consecutive weights in buckets of at most `max_numel` elements; a larger weight gets one of its own."""
    result: list[list[tuple[str, nn.Parameter]]] = []
    filled = 0
    for name, parameter in weights:
        numel = parameter_numel(parameter)
        if not result or filled + numel > max_numel:
            result.append([])
            filled = 0
        result[-1].append((name, parameter))
        filled += numel
    return result


def gathered(bucket: list[tuple[str, nn.Parameter]]) -> Iterator[tuple[str, Tensor]]:
    """Yield the bucket's whole tensors; a collective, so every rank must run through it."""
    with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter for _, parameter in bucket]):
        for name, parameter in bucket:
            yield name, parameter.data
