"""ZeRO-3 on one rank without the exchange of gradients, number for number what DeepSpeed does.

DeepSpeed copies every gradient into a bucket, reduces the bucket over its ranks, widens it and adds it to the float32
sums; at the step it copies the sums once more. Without another rank, the gradient can be added where it is, and the
sums can be read where they are: less traffic in every micro-batch, and 4 bytes a parameter less memory at the step.
"""

from typing import Any

import torch


def spare_exchange(optimizer: Any) -> None:
    """Change a `DeepSpeedZeroOptimizer_Stage3` of one rank whose gradients stay on the device."""
    _accumulate_in_place(optimizer)
    _step_in_place(optimizer)
    if optimizer.grad_partitions_flat_buffer.is_cuda:
        _wait_less(optimizer)


def _accumulate_in_place(optimizer: Any) -> None:
    sums = optimizer._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition

    @torch.no_grad()
    def accumulate(parameter: Any) -> None:
        """Add a parameter's gradient of this micro-batch to its sum, and let go of it."""
        total, grad = sums[parameter.ds_id], parameter.grad.reshape(-1)
        if optimizer.micro_step_id == 0:
            total.copy_(grad)
        else:
            total.add_(grad)
        parameter.grad = None

    optimizer.reduce_independent_p_g_buckets_and_remove_grads = accumulate


def _step_in_place(optimizer: Any) -> None:
    sizes = [int(size) for size in optimizer.fp16_partitioned_groups_flat_numel]
    sums = optimizer.grad_partitions_flat_buffer.split(sizes)  # they lie in the order of the groups

    def prepare(group: int) -> None:
        """Give the optimizer a group's sums as its gradient; clipping changes them, and the next step overwrites."""
        optimizer.fp32_partitioned_groups_flat[group].grad = sums[group]
        optimizer.averaged_gradients[group] = None

    optimizer._prepare_fp32_grad_for_sub_group = prepare


class _OrderedStream(torch.cuda.Stream):
    """The stream of all the trainer's work. What follows on it is ordered by it, so the host need not wait for it."""

    def synchronize(self) -> None:
        """Not at all."""


def _wait_less(optimizer: Any) -> None:
    """Spare the wait for the device at the end of each backward pass, after which the device waits for the host.

    It is for gradients that are reduced on a stream of their own or read by the host, of which there are none here.
    """
    stream = optimizer.reduce_and_partition_stream
    place = {name: getattr(stream, name) for name in ("stream_id", "device_index", "device_type")}
    optimizer.reduce_and_partition_stream = _OrderedStream(**place)
