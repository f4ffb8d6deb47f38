"""A token of each row of logits, drawn from their softmax by inversion, in one pass over them.

vLLM draws the argmax of logit + Gumbel noise: a random number and two logarithms for each of 152,000 logits of 512
requests, 0.5 ms of a step's 6.5. Here a pass adds up exp(logit) in blocks; then a row takes two random numbers: one
finds the block that holds that share of the sum, the other the token in it.
"""

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096


@triton.jit
def _weights(x, high):  # type: ignore[no-untyped-def]  # Triton reads these as its own types
    """exp(x - high) where `high` is the largest of x: 1 there even if it is infinite, 0 where x is -inf or NaN."""
    return tl.where(x > float("-inf"), tl.exp(tl.where(x == high, 0.0, x - high)), 0.0)


@triton.jit
def _masses(  # type: ignore[no-untyped-def]
    highest, masses, logits, stride, vocabulary, num_blocks, BLOCK: tl.constexpr
):
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + row * stride + columns, mask=columns < vocabulary, other=float("-inf")).to(tl.float32)
    high = tl.max(x, axis=0)
    tl.store(highest + row * num_blocks + block, high)
    tl.store(masses + row * num_blocks + block, tl.sum(_weights(x, high), axis=0))


@triton.jit
def _first(flags, places, none):  # type: ignore[no-untyped-def]
    return tl.min(tl.where(flags, places, none), axis=0)


@triton.jit
def _inverted(weights, places, random, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The place of the weight that holds the share `random` [0, 1) of their sum; never one of weight zero.

    A parallel sum may round neighbours differently, so the last one may fall short of the total: then the last weight.
    """
    sums = tl.cumsum(weights, axis=0)
    found = _first((sums > random * tl.max(sums, axis=0)) & (weights > 0.0), places, SIZE)
    last = tl.max(tl.where(weights > 0.0, places, 0), axis=0)
    return tl.minimum(found, last)


@triton.jit
def _choose(  # type: ignore[no-untyped-def]
    tokens, highest, masses, logits, stride, requests, seeds, positions, temperatures, vocabulary, num_blocks,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    request = tl.load(requests + row).to(tl.int64)
    is_valid = request >= 0
    is_drawn = tl.load(temperatures + request, mask=is_valid, other=0.0) != 0.0
    seed = tl.load(seeds + request, mask=is_valid, other=0)
    a, b, _, _ = tl.randint4x(seed, tl.load(positions + row))

    blocks = tl.arange(0, BLOCKS)
    high = tl.load(highest + row * num_blocks + blocks, mask=blocks < num_blocks, other=float("-inf"))
    mass = tl.load(masses + row * num_blocks + blocks, mask=blocks < num_blocks, other=0.0)
    top = tl.max(high, axis=0)
    shares = tl.where(mass > 0.0, mass * _weights(high, top), 0.0)
    drawn_block = _inverted(shares, blocks, tl.uint_to_uniform_float(a), BLOCKS)
    block = tl.where(is_drawn, drawn_block, _first(high == top, blocks, num_blocks - 1))

    lanes = tl.arange(0, BLOCK)
    columns = block * BLOCK + lanes
    x = tl.load(logits + row * stride + columns, mask=columns < vocabulary, other=float("-inf")).to(tl.float32)
    peak = tl.max(x, axis=0)
    drawn_lane = _inverted(_weights(x, peak), lanes, tl.uint_to_uniform_float(b), BLOCK)
    lane = tl.where(is_drawn, drawn_lane, _first(x == peak, lanes, BLOCK - 1))
    # A row of NaN has no largest logit: any token, but one of the vocabulary.
    tl.store(tokens + row, tl.minimum(block * BLOCK + lane, vocabulary - 1).to(tl.int64))


def draw(logits: Tensor, requests: Tensor, temperatures: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """A token [N] int64 of each row of `logits` [N, V], which the temperature has been applied to already.

    `requests` [N] says whose `temperatures` and `seeds` a row has; at temperature 0 the largest logit wins, of equal
    ones the first. A seed and a position, `positions` [N], give the same draw again. A logit of -inf is never drawn.
    """
    num_tokens, vocabulary = logits.shape
    num_blocks = triton.cdiv(vocabulary, _BLOCK)
    highest = torch.empty(num_tokens, num_blocks, dtype=torch.float32, device=logits.device)
    masses = torch.empty_like(highest)
    tokens = torch.empty(num_tokens, dtype=torch.int64, device=logits.device)
    _masses[(num_tokens, num_blocks)](highest, masses, logits, logits.stride(0), vocabulary, num_blocks, BLOCK=_BLOCK)
    _choose[(num_tokens,)](
        tokens, highest, masses, logits, logits.stride(0), requests.contiguous(), seeds, positions.contiguous(),
        temperatures, vocabulary, num_blocks, BLOCK=_BLOCK, BLOCKS=triton.next_power_of_2(num_blocks),
    )  # fmt: skip
    return tokens


@lru_cache(maxsize=1)
def install() -> None:
    """Have the sampler of vLLM's runner for GPUs draw this way, wherever nothing but the token is asked for."""
    from vllm.v1.worker.gpu.sample import sampler

    plain = sampler.gumbel_sample

    def gumbel_sample(logits: Tensor, *args: Any, apply_temperature: bool, use_fp64: bool = False) -> Tensor:
        if apply_temperature or use_fp64:
            found: Tensor = plain(logits, *args, apply_temperature=apply_temperature, use_fp64=use_fp64)
            return found
        requests, temperatures, seeds, positions = args
        return draw(logits, requests, temperatures, seeds, positions)

    sampler.gumbel_sample = gumbel_sample
