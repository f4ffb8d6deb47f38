"""What OpenRLHF 0.11.2 needs to run without flash-attn, without DeepSpeed's CUDA ops, and with a clock on its stages.

The changes are those of a machine without a compiler; the work stays OpenRLHF's. Nothing here imports OpenRLHF before
`stand_in` has run, which Ray calls first in each of its workers.
"""

import os
import sys
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import ray
import torch
import torch.nn.functional as F

_layout: dict[str, Any] = {}


def _on_cpu() -> bool:
    return os.environ.get("DS_ACCELERATOR") == "cpu"  # asking torch would fix which GPUs a worker of Ray sees


def stand_in() -> None:
    """Put this module's packing in the place of OpenRLHF's, which imports flash-attn; fill in for a missing GPU."""
    module = ModuleType("openrlhf.models.ring_attn_utils")
    module.unpad_and_slice_tensor, module.gather_and_pad_tensor = unpad, pad  # type: ignore[attr-defined]
    module.get_ring_attn_group = module.set_ring_attn_group = lambda *_: None  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    if _on_cpu():
        device = type("Device", (str,), {"__format__": lambda *_: "0"})("cpu")  # `cpu` for `to`, 0 in `cuda:{...}`
        torch.cuda.current_device = lambda: device
        torch.cuda.synchronize = lambda *_: None
        torch.cuda.set_device = lambda *_: None  # one object for both is an error to torch's compiler


def unpad(sequences: torch.Tensor, attention_mask: torch.Tensor, group: Any) -> tuple[Any, ...]:
    """One row of all tokens, their positions and successors; remembers where the sequences lie for the attention."""
    mask = attention_mask.bool()
    lengths = mask.sum(-1)
    _layout.update(ends=F.pad(lengths.cumsum(0), (1, 0)).int(), lengths=lengths.tolist())
    positions = (attention_mask.long().cumsum(-1) - 1)[mask]
    rows = (sequences[mask], positions, sequences.roll(-1, dims=1)[mask])
    return *(row[None] for row in rows), 0, mask.flatten().nonzero().flatten()


def pad(tensor: torch.Tensor, group: Any, pad_len: int, indices: torch.Tensor, batch: int, length: int) -> torch.Tensor:
    """The inverse of `unpad` for one value of each token: [1, tokens] to [batch, length], zero where nothing was."""
    return tensor.new_zeros(batch * length).index_put((indices,), tensor[0]).view(batch, length)


def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float | None = None, **_: Any) -> Any:
    """Causal attention within each sequence of the row: torch's own variable-length kernel, on a CPU one by one."""
    lengths = _layout["lengths"]
    if query.is_cuda:  # takes fewer heads of keys than of queries, which `varlen_attn` does not before torch 2.12
        q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
        places = (_layout["ends"], _layout["ends"], max(lengths), max(lengths))
        return torch.ops.aten._flash_attention_forward(q, k, v, *places, 0.0, True, False, scale=scaling)[0][None], None
    parts = zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    options: Any = {"is_causal": True, "scale": scaling, "enable_gqa": True}
    heads = [F.scaled_dot_product_attention(q, k, v, **options) for q, k, v in parts]
    return torch.cat(heads, dim=2).transpose(1, 2), None


def fused_log_probs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the labels with Liger's cross-entropy kernel, where OpenRLHF would use flash-attn's."""
    from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction

    rows = logits.reshape(-1, logits.shape[-1])
    loss = LigerCrossEntropyFunction.apply(rows, labels.reshape(-1), None, -100, 0.0, 0.0, "none")[0]
    return -loss.view(labels.shape)


def with_arguments(actor: Any, extra: dict[str, Any]) -> Any:
    """A Ray actor's class, started with more arguments than its caller gives, and waited for."""

    def start(options: dict[str, Any], arguments: dict[str, Any]) -> Any:
        engine = actor.options(**options).remote(**{**arguments, **extra})
        ray.get(engine.get_num_unfinished_requests.remote())  # while vLLM measures memory nobody may take any
        return engine

    return SimpleNamespace(options=lambda **o: SimpleNamespace(remote=lambda **a: start(o, a)))


def patched_strategy(original: type) -> type:
    """OpenRLHF's strategy with torch's fused AdamW; it brings the other changes to the process that trains."""

    class Strategy(original):
        def setup_distributed(self, *args: Any, **kwargs: Any) -> None:
            patch_training(self)
            super().setup_distributed(*args, **kwargs)

        def get_ds_train_config(self, optim_dict: Any = None, **kwargs: Any) -> Any:
            if optim_dict:
                optim_dict["params"] |= {"torch_adam": True, "fused": True}
            return super().get_ds_train_config(optim_dict, **kwargs)

        def save_model(self, *args: Any, **kwargs: Any) -> None:
            """Leave the trained model where it is."""

    return Strategy


def patch_training(strategy: Any) -> None:
    """Attention, log-probabilities and counters in the process that trains."""
    from openrlhf.models import actor
    from openrlhf.trainer.ray import ppo_actor
    from openrlhf.utils.deepspeed import deepspeed
    from transformers import AttentionInterface

    AttentionInterface.register("openrlhf_packed", attend)
    strategy.args.ds.attn_implementation = "openrlhf_packed"
    trainer: Any = ppo_actor.ActorPPOTrainer
    training_step, ppo_train = trainer.training_step, trainer.ppo_train

    def counting_step(self: Any, *args: Any) -> Any:
        self.trained += int(args[0].action_mask.sum())
        return training_step(self, *args)

    def counting_train(self: Any, *args: Any) -> Any:
        self.trained, before = 0, self.actor.model.global_steps
        status = ppo_train(self, *args)
        return {**status, "trained_tokens": self.trained, "optimizer_steps": self.actor.model.global_steps - before}

    trainer.training_step, trainer.ppo_train = counting_step, counting_train
    if _on_cpu():
        mesh = partial(deepspeed.init_device_mesh, "cpu")
        deepspeed.init_device_mesh = lambda _, *args, **kwargs: mesh(*args, **kwargs)
        trainer.broadcast_to_vllm = send_weights
    else:
        actor.log_probs_from_logits = fused_log_probs


def send_weights(trainer: Any) -> None:
    """The weights by value: a CPU has no handles for another process."""
    (engine,) = trainer.vllm_engines
    for name, weight in trainer.actor.model.module.named_parameters():
        data = weight.data.view(torch.uint8).numpy().tobytes()
        ray.get(engine.update_weight_cuda_ipc.remote(name, dtype=weight.dtype, shape=weight.shape, ipc_handles=data))
    ray.get(engine.reset_prefix_cache.remote())


class CpuWorker:
    """vLLM's end of `send_weights`."""

    def update_weight_cuda_ipc(self: Any, name: str, dtype: Any, shape: Any, ipc_handles: bytes, empty: bool) -> None:
        """Load one weight."""
        weight = torch.frombuffer(bytearray(ipc_handles), dtype=dtype).view(tuple(shape))
        self.model_runner.model.load_weights(weights=[(name, weight)])
