"""Rewards to advantages: statistics over the rewards of sequences, never over tokens.

Dr. GRPO (arXiv 2503.20783) subtracts the mean of the group and divides by nothing. GRPO, RLOO, REINFORCE with a batch
baseline and MaxRL are settings of the same function. Groups are keyed by id, never by position, so shuffled, split and
incomplete groups stay right.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Level = Literal["group", "batch", "none"]

STD_EPS = 1e-8


@dataclass(frozen=True, slots=True)
class _Scope:
    """Statistics of the samples that share a scope, spread back to those samples; every field is [B]."""

    index: Tensor
    count: Tensor
    mean: Tensor
    is_constant: Tensor


def compute_advantages(
    rewards: Tensor,
    group_ids: Tensor,
    *,
    mean_level: Level = "group",
    std_level: Level = "none",
    leave_one_out: bool = False,
    normalize_by: Literal["std", "mean"] = "std",
) -> Tensor:
    """Advantages [B] of rewards [B] whose samples are grouped by `group_ids` [B] (any integers, any order, any sizes).

        A_i = (R_i - mean) / divisor

    - `mean_level`: the mean is that of the sample's group, of the whole batch, or 0. `leave_one_out` takes the mean of
      the other samples of that scope (RLOO, arXiv 2402.14740); a sample without others gets 0.
    - `std_level`: the divisor is 1 (`none`), or over the group or batch the unbiased standard deviation (n-1) plus 1e-8
      (`normalize_by="std"`; group/group is GRPO, arXiv 2402.03300), or the plain mean (`normalize_by="mean"`;
      group/group is MaxRL, arXiv 2602.02710; a mean of 0 gives 0).

    Exactly 0 wherever the scope of the mean, or the scope of the standard deviation, holds one single value: such a
    group carries no signal, and float noise must not turn into one. With `mean_level` `batch` or `none` and no
    group-level standard deviation an all-equal group is not special: it keeps its distance to the batch mean, or to 0.

    Computed in float64; returned in the dtype of `rewards` if that is floating, else float32.

    Raises ValueError for wrong shapes, non-finite rewards (their indices are named), contradictory options, and
    division by a negative mean (it would turn every sign round).
    """
    _check_options(mean_level, std_level, leave_one_out, normalize_by)
    _check_inputs(rewards, group_ids)
    values = rewards.double()
    advantages = _centre(values, group_ids, level=mean_level, leave_one_out=leave_one_out)
    if std_level != "none":
        scope = _scope(values, group_ids, std_level)
        advantages = _divide_by_std(advantages, values, scope) if normalize_by == "std" else _divide(advantages, scope)
    return advantages.to(rewards.dtype if rewards.is_floating_point() else torch.float32)


def _check_options(mean_level: str, std_level: str, leave_one_out: bool, normalize_by: str) -> None:
    for name, level in (("mean_level", mean_level), ("std_level", std_level)):
        if level not in ("group", "batch", "none"):
            raise ValueError(f"{name} is {level!r}; use 'group', 'batch' or 'none'")
    if normalize_by not in ("std", "mean"):
        raise ValueError(f"normalize_by is {normalize_by!r}; use 'std' or 'mean'")
    if leave_one_out and mean_level == "none":
        raise ValueError(
            "leave_one_out leaves a sample out of the mean, but mean_level is 'none'; use 'group' or 'batch'"
        )
    if normalize_by == "mean" and std_level == "none":
        raise ValueError("normalize_by='mean' divides at std_level, which is 'none'; use std_level='group' for MaxRL")


def _check_inputs(rewards: Tensor, group_ids: Tensor) -> None:
    if rewards.ndim != 1 or rewards.shape != group_ids.shape:
        raise ValueError(f"rewards and group_ids must both be [B], got {[*rewards.shape]} and {[*group_ids.shape]}")
    if group_ids.is_floating_point() or group_ids.is_complex():
        raise ValueError(f"group_ids must be integers, got {group_ids.dtype}")
    bad = torch.nonzero(~torch.isfinite(rewards)).flatten().tolist()
    if bad:
        more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise ValueError(f"rewards are not finite at indices {bad[:10]}{more}")


def _scope(values: Tensor, group_ids: Tensor, level: str) -> _Scope:
    if level == "group":
        index = torch.unique(group_ids, return_inverse=True)[1]
    else:
        index = torch.zeros_like(group_ids, dtype=torch.int64)
    count = _total(torch.ones_like(values), index)
    empty = torch.zeros_like(values)
    low = empty.scatter_reduce(0, index, values, "amin", include_self=False)[index]
    high = empty.scatter_reduce(0, index, values, "amax", include_self=False)[index]
    return _Scope(index=index, count=count, mean=_total(values, index) / count, is_constant=low == high)


def _total(values: Tensor, index: Tensor) -> Tensor:
    return torch.zeros_like(values).index_add(0, index, values)[index]


def _centre(values: Tensor, group_ids: Tensor, *, level: str, leave_one_out: bool) -> Tensor:
    if level == "none":
        return values
    scope = _scope(values, group_ids, level)
    centred = values - scope.mean
    if leave_one_out:
        # R_i - mean of the others = n/(n-1) · (R_i - mean of all), exactly
        centred = centred * scope.count / (scope.count - 1).clamp(min=1)
    return torch.where(scope.is_constant, 0.0, centred)


def _divide_by_std(advantages: Tensor, values: Tensor, scope: _Scope) -> Tensor:
    squares = _total((values - scope.mean).square(), scope.index)
    std = (squares / (scope.count - 1).clamp(min=1)).sqrt()
    return torch.where(scope.is_constant, 0.0, advantages / (std + STD_EPS))


def _divide(advantages: Tensor, scope: _Scope) -> Tensor:
    negative = scope.mean[scope.mean < 0]
    if negative.numel():
        raise ValueError(
            f"normalize_by='mean' needs rewards with a mean of 0 or more, got {negative.min().item():g}; "
            "raise the reward bias or use normalize_by='std'"
        )
    return torch.where(scope.mean == 0, 0.0, advantages / scope.mean)


def shape_rewards(rewards: Tensor, *, scaling: float = 1.0, bias: float = 0.0, clip: float = 0.0) -> Tensor:
    """`clip((rewards + bias) * scaling, -clip, clip)`, any shape, in AReaL's order; a `clip` of 0 does not clip."""
    shaped = (rewards + bias) * scaling
    return shaped.clamp(min=-clip, max=clip) if clip > 0 else shaped


def overlong_penalty(num_tokens: Tensor, *, max_completion_tokens: int, buffer_tokens: int, penalty: float) -> Tensor:
    """Soft penalty of long completions (DAPO, arXiv 2503.14476, eq. 13): float32 in [-penalty, 0], added to the reward.

    `num_tokens` [B] counts completion tokens. 0 up to `max_completion_tokens - buffer_tokens`, then linear down to
    `-penalty` at `max_completion_tokens`, where every completion cut at the limit is.
    """
    if not 0 < buffer_tokens <= max_completion_tokens:
        raise ValueError(
            f"buffer_tokens is {buffer_tokens}; it must lie in 1..max_completion_tokens ({max_completion_tokens})"
        )
    excess = num_tokens.to(torch.float32) - (max_completion_tokens - buffer_tokens)
    return -penalty * (excess / buffer_tokens).clamp(min=0.0, max=1.0)
