"""The tensor files of a trainer's checkpoint: their names, a rank's share of a tensor, the random state."""

import math
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from drgrpo.trainer.optimizer_state import share_numel
from drgrpo.trainer.weights import parameter_shape


def shard_name(kind: str, number: int) -> str:
    """File of the `number`th bucket of weights, exp_avg or exp_avg_sq."""
    return f"{kind}-{number:05d}.safetensors"


def rng_name(rank: int) -> str:
    """File of a rank's random state."""
    return f"rng-{rank:05d}.safetensors"


def rng_tensors() -> dict[str, Tensor]:
    """This process's random state, uint8. Training draws nothing from it today; what does so later stays exact."""
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {})


def set_rng(path: Path) -> None:
    """Set this process's random state to the one in the file."""
    with safe_open(path, framework="pt") as file:
        torch.set_rng_state(file.get_tensor("cpu"))
        if "cuda" in file.keys() and torch.cuda.is_initialized():  # noqa: SIM118  # not a mapping
            torch.cuda.set_rng_state(file.get_tensor("cuda"))


def read_share(path: Path, name: str, parameter: nn.Parameter, rank: int) -> Tensor:
    """This rank's share [share_numel] of a tensor in a file, padded with zeros; reads only the rows that it needs."""
    shape, share = parameter_shape(parameter), share_numel(parameter)
    numel = math.prod(shape)
    start, end = min(rank * share, numel), min((rank + 1) * share, numel)
    padded = torch.zeros(share)
    if start < end:
        row = numel // shape[0]
        first, last = start // row, -(-end // row)
        with safe_open(path, framework="pt") as file:
            rows = file.get_slice(name)[first:last].reshape(-1)
        padded[: end - start] = rows[start - first * row : end - first * row]
    return padded
