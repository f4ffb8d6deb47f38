"""Attention over a packed row without padding, registered with transformers as `drgrpo_packed`.

16-bit tensors on a GPU go through one variable-length kernel, to which a shared prompt's keys and values are given once
for each completion; the rest runs segment by segment, with a tree mask where completions share a prompt.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from drgrpo.trainer.gather import gather
from drgrpo.trainer.layout import KernelLayout, PackedLayout

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
    if packed_layout.kernel is not None:
        return _varlen(query, key, value, packed_layout.kernel, scaling), None
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


def _varlen(query: Tensor, key: Tensor, value: Tensor, layout: KernelLayout, scaling: float | None) -> Tensor:
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    if layout.keys is not None:
        k, v = gather(k, layout.keys), gather(v, layout.keys)
    return _flash_attention(q.contiguous(), k.contiguous(), v.contiguous(), layout, scaling)[None]


def _flash_attention(q: Tensor, k: Tensor, v: Tensor, layout: KernelLayout, scaling: float | None) -> Tensor:
    """Torch's kernel itself. The function around it takes no fewer heads of keys than of queries before torch 2.12."""
    lengths = (layout.cu_queries, layout.cu_keys, layout.max_queries, layout.max_keys)
    out: Tensor = torch.ops.aten._flash_attention_forward(q, k, v, *lengths, 0.0, True, False, scale=scaling)[0]
    return out


AttentionInterface.register(NAME, packed_attention)
