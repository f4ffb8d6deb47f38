"""Gradients that one rank adds in place, on a stand-in for DeepSpeed's optimizer."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drgrpo.trainer.one_rank import _accumulate_in_place, _read_norm_once


def optimizer_of(*parameters: Any) -> Any:
    """What these changes use of a `DeepSpeedZeroOptimizer_Stage3`, with sums left from the step before."""
    for index, parameter in enumerate(parameters):
        parameter.ds_id = index
    sums = {parameter.ds_id: torch.full((parameter.numel(),), 9.0) for parameter in parameters}
    return SimpleNamespace(
        _DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition=sums,
        fp16_groups=[[parameter] for parameter in parameters],
        _grad_acc_hooks=[],
        _leaf_module_hooks=[],
        micro_step_id=0,
    )


def test_a_parameter_that_a_pass_does_not_use_adds_nothing_and_keeps_nothing_of_the_last_step() -> None:
    first, second = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(4))
    optimizer = optimizer_of(first, second)
    sums = optimizer._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition
    _accumulate_in_place(optimizer)

    def backward(micro_step: int, loss: Tensor) -> list[list[float]]:
        optimizer.micro_step_id = micro_step
        loss.backward()
        optimizer.independent_gradient_partition_epilogue()
        assert first.grad is None and second.grad is None
        return [values.tolist() for values in sums.values()]

    assert backward(0, 2 * first.sum()) == [[2.0] * 6, [0.0] * 4]
    assert backward(1, first.sum() + 3 * second.sum()) == [[3.0] * 6, [3.0] * 4]
    assert backward(2, second.sum()) == [[3.0] * 6, [4.0] * 4]
    assert backward(0, second.sum()) == [[0.0] * 6, [1.0] * 4]
    assert [group[0] is sums[index] for index, group in optimizer.averaged_gradients.items()] == [True, True]


@pytest.mark.parametrize(("clip_grad", "multiplied"), [(12.9, [0, 1]), (13.1, []), (0.0, [])])
def test_norms_are_exact_and_sums_are_multiplied_only_where_that_changes_them(
    clip_grad: float, multiplied: list[int]
) -> None:
    clipped: list[int] = []
    gradients = {0: [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])], 1: [torch.full((144,), 1.0)]}
    optimizer = SimpleNamespace(
        averaged_gradients=gradients,
        loss_scale=1.0,
        clip_grad=clip_grad,
        unscale_and_clip_grads=lambda group, norm: clipped.append(group),
    )
    _read_norm_once(optimizer)
    norms = optimizer._get_norm_groups()
    assert [(norm.item(), norm.dtype) for norm in norms] == [(5.0, torch.float64), (12.0, torch.float64)]
    for group in gradients:
        optimizer.unscale_and_clip_grads(group, torch.stack(norms).norm())  # 13
    assert clipped == multiplied
    gradients[1][0][7] = float("nan")
    assert [norm.isfinite().item() for norm in optimizer._get_norm_groups()] == [True, False]
