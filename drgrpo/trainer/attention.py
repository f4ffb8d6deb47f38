"""Attention over a packed row without padding, registered with transformers as `drgrpo_packed`.

16-bit tensors on a GPU go through one variable-length kernel; everything else runs segment by segment, which is exact
and costs nothing beyond the segments' own squares. Segments whose completions share a prompt use a tree mask.
"""

import importlib
import inspect
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from drgrpo.trainer.batch import PackedLayout

NAME = "drgrpo_packed"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_layout: PackedLayout,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of a packed row. `query` [1, H, T, D]; `key`, `value` [1, H_kv, T, D]; returns [1, T, H, D].

    Positional information is already in the tensors; `packed_layout` says which positions see each other.
    """
    if _one_kernel(query, packed_layout):
        return _varlen(query, key, value, packed_layout, scaling), None
    outputs = []
    for segment, mask in zip(packed_layout.segments, packed_layout.shared_masks, strict=True):
        span = slice(segment.start, segment.end)
        outputs.append(
            F.scaled_dot_product_attention(
                query[:, :, span],
                key[:, :, span],
                value[:, :, span],
                attn_mask=mask,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _one_kernel(query: Tensor, layout: PackedLayout) -> bool:
    half = query.dtype in (torch.bfloat16, torch.float16)
    return query.is_cuda and half and all(mask is None for mask in layout.shared_masks)


def _varlen(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scaling: float | None) -> Tensor:
    q, k, v = (x.squeeze(0).transpose(0, 1).contiguous() for x in (query, key, value))
    cu, longest = layout.cu_seqlens, layout.max_seqlen
    kernel: Any = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    options: dict[str, Any] = {"scale": scaling, **_varlen_options(kernel)}
    if "enable_gqa" not in options and q.shape[1] != k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    out: Tensor = kernel(q, k, v, cu, cu, longest, longest, **options)
    return out[None]


@lru_cache(maxsize=1)
def _varlen_options(kernel: Any) -> dict[str, Any]:
    """How this version of torch says causal and grouped-query; the names changed between 2.10 and 2.13."""
    known = inspect.signature(kernel).parameters
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    return options | ({"enable_gqa": True} if "enable_gqa" in known else {})


AttentionInterface.register(NAME, packed_attention)
