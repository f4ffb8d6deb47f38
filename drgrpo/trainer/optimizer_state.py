"""The float32 weights and Adam's moments inside a ZeRO-3 engine: gathered one tensor at a time, set share by share."""

from typing import Any

import deepspeed.utils
import torch
from torch import Tensor, nn

from drgrpo.trainer.weights import parameter_shape

KINDS = ("weights", "exp_avg", "exp_avg_sq")
MOMENTS = KINDS[1:]


def adam_step(engine: Any) -> int:
    """Steps that Adam has taken; 0 before the first, when it has no state."""
    states = engine.optimizer.state
    return max((int(states[flat]["step"]) for flat in _flats(engine) if states.get(flat)), default=0)


def whole_tensor(engine: Any, parameter: nn.Parameter, kind: str) -> Tensor:
    """The whole float32 tensor of `kind` on the engine's device; a collective."""
    if kind == "weights":
        return deepspeed.utils.safe_get_full_fp32_param(parameter)
    if adam_step(engine) == 0:
        return torch.zeros(parameter_shape(parameter))
    return deepspeed.utils.safe_get_full_optimizer_state(parameter, kind)


def share_numel(parameter: nn.Parameter) -> int:
    """Elements that each rank holds of the parameter; the last ranks' end in padding."""
    partitioned: Any = parameter
    return int(partitioned.ds_tensor.numel())


def set_share(parameter: nn.Parameter, kind: str, share: Tensor) -> None:
    """Set this rank's share [share_numel] float32 of `kind`; `prepare` comes before and `refresh` after."""
    if kind == "weights":
        deepspeed.utils.safe_set_local_fp32_param(parameter, share)
    else:
        deepspeed.utils.safe_set_local_optimizer_state(parameter, share, kind)


def prepare(engine: Any, step: int) -> None:
    """Drop pending gradients and give Adam the state that it would have after `step` steps, moments still zero."""
    optimizer = engine.optimizer
    optimizer.checkpoint_event_prologue()
    # Without this the next backward pass would add to what an unfinished step has accumulated.
    optimizer.zero_grad()
    (group,) = optimizer.param_groups
    for flat in _flats(engine):
        on_device = group["fused"] or group["capturable"]
        optimizer.state[flat] = {
            # As torch.optim.AdamW makes it at its first step.
            "step": torch.tensor(float(step), dtype=torch.float32, device=flat.device if on_device else "cpu"),
            **{kind: torch.zeros_like(flat, memory_format=torch.preserve_format) for kind in MOMENTS},
        }


def refresh(engine: Any) -> None:
    """Bring the compute copy and the parameters that stay gathered to the float32 weights; a collective."""
    optimizer = engine.optimizer
    for index in range(len(_flats(engine))):
        # What DeepSpeed's own step does after Adam, and its only way to round the weights to the compute dtype.
        optimizer._reassign_or_swap_out_partitioned_parameters(index)
    optimizer.checkpoint_event_epilogue()


def _flats(engine: Any) -> list[Tensor]:
    return engine.optimizer.fp32_partitioned_groups_flat
