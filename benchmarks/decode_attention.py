"""An experiment: attention of a decoding pass, one query for each sequence, beside vLLM's FlashAttention.

python -m benchmarks.decode_attention --out FILE

The sampler does not use it. A pass of many sequences with short contexts is bound by reading keys and values; a program
for each sequence and head of keys keeps many small tiles on their way at once, where FlashAttention 3 works through
few large ones. `python -m benchmarks.rollout --setting decode_attention` samples with it.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from benchmarks.machine import hardware, versions

_LOG2_E = 1.4426950408889634
TILES = ((32, 2, 3), (64, 4, 2), (64, 4, 3), (64, 2, 3), (128, 4, 2), (128, 8, 2))
"""Tokens of a tile, warps and stages that the benchmark tries; the second one is what sampling takes."""


@triton.jit
def _attend(  # type: ignore[no-untyped-def]  # Triton reads these as its own types
    out, out_stride, query, query_stride, keys, values, page_stride, head_stride, token_stride,
    pages, pages_stride, lengths, scale,
    GROUP: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    head, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    length = tl.load(lengths + row)
    heads, columns = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    of_group = (heads < GROUP)[:, None]
    places = (head * GROUP + heads)[:, None] * WIDTH + columns[None, :]
    q = tl.load(query + row * query_stride + places, mask=of_group, other=0.0)
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, WIDTH], tl.float32)
    for start in range(0, length, TILE):
        tokens = start + tl.arange(0, TILE)
        there = tokens < length
        page = tl.load(pages + row * pages_stride + tokens // PAGE, mask=there, other=0).to(tl.int64)
        cached = (page * page_stride + head * head_stride + (tokens % PAGE) * token_stride)[:, None] + columns[None, :]
        k = tl.load(keys + cached, mask=there[:, None], other=0.0)
        v = tl.load(values + cached, mask=there[:, None], other=0.0)
        scores = tl.where(there[None, :], tl.dot(q, tl.trans(k)) * scale, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(highest - higher)
        total = total * shrink + tl.sum(weights, 1)
        sums = sums * shrink[:, None] + tl.dot(weights.to(v.dtype), v)
        highest = higher
    # A row that only pads a captured graph has no tokens.
    result = sums / tl.where(total > 0.0, total, 1.0)[:, None]
    tl.store(out + row * out_stride + places, result.to(out.dtype.element_ty), mask=of_group)


def decode_attention(
    out: Tensor,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    pages: Tensor,
    lengths: Tensor,
    *,
    scale: float,
    tile: tuple[int, int, int] = TILES[1],
) -> None:
    """Attention of one query a sequence over its cached keys and values, into `out`.

    Args:
        out, query: [sequences, heads, width], a head's values side by side; 16-bit.
        keys, values: [pages, tokens of a page, heads of keys, width], with equal strides.
        pages: [sequences, pages of a sequence] int32, the pages of each sequence in order.
        lengths: [sequences] int32, cached tokens of each, its own included.
        scale: Of the scores.
        tile: Tokens of a tile, warps, stages.
    """
    (num_rows, num_heads, width), (_, page, num_key_heads, _) = query.shape, keys.shape
    group = num_heads // num_key_heads
    _attend[(num_key_heads, num_rows)](
        out, out.stride(0), query, query.stride(0), keys, values, keys.stride(0), keys.stride(2), keys.stride(1),
        pages, pages.stride(0), lengths, scale * _LOG2_E,
        GROUP=group, ROWS=max(16, triton.next_power_of_2(group)), WIDTH=width, PAGE=page, TILE=tile[0],
        num_warps=tile[1], num_stages=tile[2],
    )  # fmt: skip


def suits(given: dict[str, Any], *, fewest: int) -> bool:
    """Whether a call of vLLM's attention is of one query for each of `fewest` or more sequences, nothing special."""
    if any(given.get(name) is None for name in ("q", "k", "v", "out", "block_table", "seqused_k", "softmax_scale")):
        return False
    special = ("alibi_slopes", "s_aux", "mask_mod", "dynamic_causal", "cu_seqlens_k")
    plain = not any(given.get(name) is not None for name in special)
    plain = plain and not given.get("softcap") and not given.get("return_softmax_lse")
    window = tuple(given.get("window_size") or (-1, -1)) == (-1, -1)
    q, k = given["q"], given["k"]
    # Few sequences want their contexts split among more programs than one each.
    fits = fewest <= len(q) <= len(given["seqused_k"]) and q.dtype == k.dtype and q.element_size() == 2
    width = q.shape[2]
    rows = q.stride(2) == 1 and q.stride(1) == width and width & (width - 1) == 0
    return plain and window and fits and rows and given["max_seqlen_q"] == 1


@contextmanager
def installed(*, fewest: int = 128) -> Iterator[None]:
    """Have vLLM's FlashAttention backend decode with the kernel where it suits; prints how often it was called.

    For graphs of decoding alone, as vLLM captures them unless told otherwise: with `cudagraph_mode` FULL a graph of
    single queries would be replayed for prefills too.
    """
    from vllm.v1.attention.backends import flash_attn

    theirs: Callable[..., Any] = flash_attn.flash_attn_varlen_func
    num_calls = 0

    def attend(*args: Any, **given: Any) -> Any:
        nonlocal num_calls
        if args or not suits(given, fewest=fewest):
            return theirs(*args, **given)
        num_calls += 1
        cached = (given["k"], given["v"], given["block_table"], given["seqused_k"])
        decode_attention(given["out"], given["q"], *cached, scale=given["softmax_scale"])
        return given["out"]

    flash_attn.flash_attn_varlen_func = attend
    try:
        yield
    finally:
        flash_attn.flash_attn_varlen_func = theirs
        print(f"decode_attention was called or captured {num_calls} times")


def random_cache(
    lengths: Tensor, *, num_heads: int, num_key_heads: int, width: int, page: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values and page tables of sequences of these lengths, laid out as vLLM's cache is."""
    device, longest = lengths.device, -(-int(lengths.max()) // page)
    pages = torch.randperm(len(lengths) * longest, device=device).int().view(len(lengths), longest)
    cache = torch.randn(pages.numel(), num_key_heads, page, 2 * width, device=device).to(dtype)
    keys, values = cache.transpose(1, 2).split(width, dim=-1)
    return torch.randn(len(lengths), num_heads, width, device=device).to(dtype), keys, values, pages


def measure(num_sequences: int, context: int) -> dict[str, float]:
    """Milliseconds of a layer of Qwen2.5-1.5B with each tile, of FlashAttention, of copying half of what is read."""
    from vllm.v1.attention.backends.flash_attn import flash_attn_varlen_func

    lengths = torch.full((num_sequences,), context, dtype=torch.int32, device="cuda")
    shape: dict[str, Any] = {"num_heads": 12, "num_key_heads": 2, "width": 128, "page": 16, "dtype": torch.bfloat16}
    query, keys, values, pages = random_cache(lengths, **shape)
    out, scale = torch.empty_like(query), 128**-0.5
    starts = torch.arange(num_sequences + 1, dtype=torch.int32, device="cuda")
    theirs: dict[str, Any] = {
        **{"q": query, "k": keys, "v": values, "out": out, "cu_seqlens_q": starts, "max_seqlen_q": 1},
        **{"seqused_k": lengths, "max_seqlen_k": context, "softmax_scale": scale, "causal": True},
        **{"block_table": pages, "fa_version": 3},
    }
    calls = {
        f"tile={tile[0]},warps={tile[1]},stages={tile[2]}": partial(
            decode_attention, out, query, keys, values, pages, lengths, scale=scale, tile=tile
        )
        for tile in TILES
    }
    calls |= {f"flash splits={n}": partial(flash_attn_varlen_func, **theirs, num_splits=n) for n in (0, 1)}
    calls["copy"] = partial(torch.clone, torch.empty(lengths.sum() * 2 * 128, dtype=torch.bfloat16, device="cuda"))
    return {name: triton.testing.do_bench_cudagraph(call) for name, call in calls.items()}


def main() -> None:
    """Time the kernel for the passes of workload A and for fewer and longer sequences; print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    cases = ((512, 180), (512, 366), (512, 620), (1024, 300), (256, 366), (128, 620), (64, 900))
    result = {f"{number} of {context}": measure(number, context) for number, context in cases}
    options.out.write_text(json.dumps({"hardware": hardware(), "versions": versions(), "ms": result}, indent=1) + "\n")
    for case, times in result.items():
        print(case, {name: round(time, 4) for name, time in times.items()})


if __name__ == "__main__":
    main()
