"""The DeepSpeed ZeRO-3 engine: built here, with the settings that keep its arithmetic ours.

DeepSpeed averages gradients over ranks; `Trainer` multiplies its loss by the world size, once, to undo that. Gradient
accumulation is ours: the boundary is set by hand, so the number of micro-batches may differ from step to step.
"""

import os
import socket
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.constants import default_pg_timeout
from deepspeed.utils import set_z3_leaf_modules

from drgrpo.config.sections import OptimizerConfig, TrainerConfig
from drgrpo.leftovers import buffer_owner, reduce_buffer
from drgrpo.trainer.one_rank import keep_gathered, spare_exchange
from drgrpo.trainer.policy import Policy

# Below this many elements a parameter stays gathered on every rank. With one rank there is nothing to partition.
_PERSIST_ALL = 10**12
_PERSIST_SMALL = 10**5
# DeepSpeed's throughput has the host wait for the device at the start of every forward pass, after two steps.
_NO_TIMERS = {"throughput": {"enabled": False}}


def init_process_group(
    rank: int,
    world_size: int,
    address: str,
    port: int,
    device: torch.device,
    *,
    listener: socket.socket | None = None,
) -> None:
    """Join the trainer's process group; `address:port` is rank 0's, and `listener` its socket there if it has one."""
    store = _rendezvous(rank, world_size, address, port, listener)
    owner = _pid_of_rank_0(store, rank)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK="0",  # each rank sees the device of its place alone, as the first
        WORLD_SIZE=str(world_size),
        LOCAL_SIZE=str(world_size),  # read on CPU alone, where all ranks are on one machine
        MASTER_ADDR=buffer_owner(owner),  # nobody connects to it: the ranks have their store
        MASTER_PORT=str(port),
    )
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=default_pg_timeout,
        device_id=device if device.type == "cuda" and world_size > 1 else None,
    )
    try:
        deepspeed.init_distributed(backend)  # finds the group
        if device.type == "cpu":
            dist.barrier()  # every rank has mapped the buffers of all by now
    finally:
        reduce_buffer(owner, port, rank).unlink(missing_ok=True)  # else its 66 MB outlive the process


def _rendezvous(rank: int, world_size: int, address: str, port: int, listener: socket.socket | None) -> dist.TCPStore:
    """The ranks' store. Torch's own listens on every interface, so rank 0 brings a socket bound to `address`."""
    if rank:
        return dist.TCPStore(address, port, world_size, is_master=False)
    listener = listener or socket.create_server((address, port), backlog=2 * world_size)
    return dist.TCPStore(address, port, world_size, is_master=True, master_listen_fd=listener.detach())


def _pid_of_rank_0(store: dist.TCPStore, rank: int) -> int:
    if rank == 0:
        store.set("pid", str(os.getpid()))
    return int(store.get("pid"))


def zero_config(dtype: str, *, optimizer: OptimizerConfig, trainer: TrainerConfig, world_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration for the policy."""
    zero: dict[str, Any] = {
        "stage": 3,
        "contiguous_gradients": world_size > 1,  # a buffer for gradients that are exchanged
        "overlap_comm": world_size > 1,
        "stage3_param_persistence_threshold": _PERSIST_ALL if world_size == 1 else _PERSIST_SMALL,
        "stage3_model_persistence_threshold": _PERSIST_ALL,
        # A linear layer that looks its weight up again in the backward pass, in Python, where that may be elsewhere.
        "memory_efficient_linear": world_size > 1,
    }
    if trainer.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimizer.grad_clip,
        "bf16": {"enabled": dtype == "bfloat16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        # Gradients of several ranks are summed in float32 too; with one rank there is nothing to sum.
        "communication_data_type": "fp32" if world_size > 1 or dtype == "float32" else "bf16",
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # its C++ Adam is not bit-exact over a resume
        "steps_per_print": 10**9,
        "timers": _NO_TIMERS,
    }


def build_engine(policy: Policy, config: dict[str, Any], optimizer: OptimizerConfig, device: torch.device) -> Any:
    """Wrap `policy` in a ZeRO-3 engine with torch's fused AdamW, which reads the gradients where ZeRO-3 left them."""
    adamw = torch.optim.AdamW(
        policy.parameters(),
        lr=optimizer.lr,
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        fused=True,
    )
    _gather_whole_layers(policy)
    engine, *_ = deepspeed.initialize(model=policy.to(device), optimizer=adamw, config=config)
    engine.train()  # for good: models are loaded for evaluation, in which no layer recomputes
    if dist.get_world_size() == 1 and "offload_optimizer" not in config["zero_optimization"]:
        spare_exchange(engine)
    return engine


def build_reference(policy: Policy, dtype: str, device: torch.device) -> Any:
    """Wrap a frozen policy in a ZeRO-3 engine without an optimizer, for the KL term."""
    policy.requires_grad_(False)
    _gather_whole_layers(policy)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": dtype == "bfloat16"},
        "zero_optimization": {"stage": 3},
        "steps_per_print": 10**9,
        "timers": _NO_TIMERS,
    }
    engine, *_ = deepspeed.initialize(model=policy.to(device), config=config)
    if dist.get_world_size() == 1:
        keep_gathered(engine)
    engine.eval()  # of DeepSpeed's engine, this returns None
    return engine


def _gather_whole_layers(policy: Policy) -> None:
    """Hooks at every linear layer cost 0.2 s of Python a micro-batch; and a layer may use any of its weights."""
    set_z3_leaf_modules(policy, [type(policy.decoder.layers[0])])
