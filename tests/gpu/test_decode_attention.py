"""The benchmark's decoding kernel against softmax attention in float64."""

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.gpu


def exact(query: Tensor, keys: Tensor, values: Tensor, pages: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """Attention sequence by sequence in float64; none is a row of zeros."""
    group = query.shape[1] // keys.shape[2]
    rows = []
    for q, page, length in zip(query.double(), pages.long(), lengths.tolist(), strict=True):
        k, v = (cache[page].flatten(0, 1)[:length].double().repeat_interleave(group, dim=1) for cache in (keys, values))
        weights = torch.softmax(torch.einsum("hd,thd->ht", q, k) * scale, dim=-1)
        rows.append(torch.einsum("ht,thd->hd", weights, v))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("num_heads", "num_key_heads", "width"), [(12, 2, 128), (9, 3, 64), (16, 16, 128), (40, 2, 64)]
)
@pytest.mark.parametrize("tile", [(32, 2, 3), (64, 4, 2), (128, 4, 2)])
def test_it_is_attention(
    num_heads: int, num_key_heads: int, width: int, tile: tuple[int, int, int], device: torch.device
) -> None:
    if device.type != "cuda":
        pytest.skip("needs a CUDA device")
    module: Any = importlib.import_module("benchmarks.decode_attention")
    torch.manual_seed(0)
    lengths = torch.tensor([1, 15, 16, 17, 63, 64, 65, 200, 0], dtype=torch.int32, device=device)
    shape = {"num_heads": num_heads, "num_key_heads": num_key_heads, "width": width, "page": 16}
    query, keys, values, pages = module.random_cache(lengths, **shape, dtype=torch.bfloat16)
    out = torch.full_like(query, float("nan"))
    module.decode_attention(out, query, keys, values, pages, lengths, scale=width**-0.5, tile=tile)
    wanted = exact(query, keys, values, pages, lengths, width**-0.5)
    torch.testing.assert_close(out.double(), wanted, atol=2e-2, rtol=2e-2)
