"""Element-wise functions as one kernel on a GPU, and as they are on a CPU."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

Function = Callable[..., Any]


@lru_cache(maxsize=16)
def _compiled(function: Function) -> Function:
    return torch.compile(function, dynamic=True)


def compiled(function: Function, device: torch.device) -> Function:
    """`function`, compiled for lengths that differ from call to call where `device` is a GPU."""
    return _compiled(function) if device.type == "cuda" else function
