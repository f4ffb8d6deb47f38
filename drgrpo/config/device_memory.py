"""Memory of a GPU: what trainer and sampler need, and whether the device has it. The arithmetic of docs/memory.md.

As in `drgrpo.config.machine`, the checks take numbers and `smallest_device` reads them from this machine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drgrpo.architecture import FUSED_LAYERS
from drgrpo.config.errors import Mistake
from drgrpo.config.train import TrainConfig

GIB = 2**30
# Elements of the buffer in which DeepSpeed collects gradients before it adds them up.
REDUCE_BUCKET = 500_000_000
# Parameters that its ZeRO-3 holds gathered and fetches ahead at most, unless told otherwise.
GATHERED = 1_050_000_000
# Assumed: two CUDA contexts, the staging buffer of a push, what allocators cannot use.
OVERHEAD_BYTES = 5 * GIB // 2
# Assumed: a sampler's activations and CUDA graphs.
SAMPLER_WORK_BYTES = 3 * GIB // 2


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Dimensions of a decoder that memory depends on.

    `kv_width` and `q_width` are key-value heads, and query heads, times the width of a head. `is_fused`: the trainer
    has its own forward pass for it. `norms_heads`: queries and keys pass a norm.
    """

    num_parameters: int
    hidden: int
    intermediate: int
    num_layers: int
    vocabulary: int
    kv_width: int
    q_width: int
    is_fused: bool = True
    norms_heads: bool = False


def model_shape(config: Mapping[str, Any], num_parameters: int | None) -> ModelShape | None:
    """The shape of a model with this `config.json`; None when one of its numbers is missing."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size", "num_attention_heads")
    hidden, intermediate, layers, vocabulary, heads = (_size(config, name) for name in names)
    if not num_parameters or not all((hidden, intermediate, layers, vocabulary, heads)):
        return None
    width = _size(config, "head_dim") or hidden // heads
    return ModelShape(
        num_parameters, hidden, intermediate, layers, vocabulary,
        kv_width=(_size(config, "num_key_value_heads") or heads) * width,
        q_width=heads * width,
        is_fused=config.get("model_type") in [name.lower() for name in FUSED_LAYERS],
        norms_heads=config.get("model_type") == "qwen3",
    )  # fmt: skip


def _size(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    return value if isinstance(value, int) and value > 0 else 0


def check_device_memory(
    config: TrainConfig, shape: ModelShape, *, device_bytes: int, shared_by: int = 1
) -> list[Mistake]:
    """Trainer and sampler beside each other on one device, and in the sampler's share its weights and one sequence.

    `shared_by`: runs like this one that the device has to hold at once.
    """
    trainer, sampler = trainer_bytes(config, shape), sampler_bytes(config, shape)
    # A sampler that sleeps gives what it has to the update.
    given = given_bytes(config, shape, device_bytes)
    taken = 0 if config.placement.sleep else given
    field = "rollout.kv_cache_gib" if config.rollout.kv_cache_gib else "rollout.gpu_memory_utilization"
    value = config.rollout.kv_cache_gib or config.rollout.gpu_memory_utilization
    mistakes = []
    room = device_bytes // shared_by
    if trainer + taken + OVERHEAD_BYTES > room:
        of = f"of a run's part, {room / GIB:.1f}," if shared_by > 1 else f"of the device's {room / GIB:.1f}"
        problem = (
            f"{of} GiB the sampler takes {taken / GIB:.1f}, the trainer needs "
            f"about {trainer / GIB:.1f}, and {OVERHEAD_BYTES / GIB:.1f} go to contexts and buffers"
        )
        left = room - trainer - OVERHEAD_BYTES
        mistakes.append(Mistake(field, value, problem, _remedy(config, shape, left, device_bytes)))
    if sampler > given:
        problem = (
            f"of the device's {device_bytes / GIB:.1f} GiB this is {given / GIB:.1f}; the sampler's "
            f"weights and the KV cache of one sequence need {sampler / GIB:.1f}"
        )
        mistakes.append(Mistake(field, value, problem, "raise it, or take a smaller model"))
    return mistakes


def given_bytes(config: TrainConfig, shape: ModelShape, device_bytes: int) -> int:
    """Bytes that a sampler takes: its share, or weights, work and a cache of a given size, if there is one."""
    if not config.rollout.kv_cache_gib:
        return int(config.rollout.gpu_memory_utilization * device_bytes)
    return compute_bytes(config) * shape.num_parameters + SAMPLER_WORK_BYTES + int(config.rollout.kv_cache_gib * GIB)


def _remedy(config: TrainConfig, shape: ModelShape, left: int, device_bytes: int) -> str:
    """`left`: bytes that the trainer leaves to the sampler."""
    remedies = []
    needed = sampler_bytes(config, shape)
    if not config.placement.sleep and config.rollout.kv_cache_gib:
        cache = left - compute_bytes(config) * shape.num_parameters - SAMPLER_WORK_BYTES
        if cache >= kv_bytes(config, shape) * config.max_model_len:
            remedies.append(f"lower it to at most {int(cache / GIB * 10) / 10:.1f}")
    elif not config.placement.sleep and left / device_bytes >= max(needed / device_bytes, 0.05):
        remedies.append(f"lower it to at most {int(left / device_bytes * 100) / 100:.2f}")
    if config.trainer.gradient_checkpointing < 1:
        remedies.append("set trainer.gradient_checkpointing to 1")
    if not config.trainer.offload_optimizer:
        remedies.append("set trainer.offload_optimizer to true")
    return ", or ".join([*remedies, "lower trainer.tokens_per_microbatch", "take a smaller model"])


def trainer_bytes(config: TrainConfig, shape: ModelShape) -> int:
    """Bytes of device memory of a rank at its peak, in the backward pass of a full micro-batch.

    Divided among the ranks: weights in the compute type, 16 a parameter for float32 weights, moments and gradient
    unless offloaded, a reference model. On each: DeepSpeed's bucket, if gradients are exchanged or offloaded, the
    weights that it holds gathered, if they are divided, and of each token of a micro-batch every layer's activations,
    or only its input where they are recomputed; then a layer at work, or the head: a chunk of logits, kept or computed
    again, which its gradient replaces, and the head's own gradient in float32.
    """
    compute, trainer = compute_bytes(config), config.trainer
    states = (compute + (0 if trainer.offload_optimizer else 16)) * shape.num_parameters
    reference = compute * shape.num_parameters if config.loss.kl_coef > 0 else 0
    inputs = compute * shape.hidden * trainer.tokens_per_microbatch
    wide = compute * shape.intermediate * trainer.tokens_per_microbatch
    if compute == 2 and shape.is_fused:
        # Inputs of two norms, queries, keys, values and output of attention; gate and up. And heads before their norms.
        heads = 2 * (shape.q_width + shape.kv_width) + shape.norms_heads * (shape.q_width + shape.kv_width)
        layer = 2 * inputs + compute * heads * trainer.tokens_per_microbatch + 2 * wide
    else:
        # Outputs of the norms, inputs of projections and an addition as well; in float32 the MLP's product too.
        layer = 8 * inputs + (2 if compute == 2 else 3) * wide
    # The first layers recompute, when what the last ones kept is free again.
    recomputed = round(trainer.gradient_checkpointing * shape.num_layers)
    kept = recomputed * inputs + (shape.num_layers - recomputed) * layer
    # The product and three gradients of the width of the MLP; a chunk, and the head's gradient twice.
    at_work = 4 * wide + (layer if recomputed == shape.num_layers else 0)
    rows = min(trainer.logprob_chunk_tokens, trainer.tokens_per_microbatch)
    head = (compute * rows + 8 * shape.hidden) * shape.vocabulary
    bucket = compute * REDUCE_BUCKET if trainer.num_ranks > 1 or trainer.offload_optimizer else 0
    gathered = compute * min(shape.num_parameters, GATHERED) if trainer.num_ranks > 1 else 0
    return (states + reference) // trainer.num_ranks + bucket + gathered + kept + max(head, at_work)


def sampler_bytes(config: TrainConfig, shape: ModelShape) -> int:
    """Bytes without which the sampler cannot start: its weights, and the KV cache of the longest sequence."""
    return compute_bytes(config) * shape.num_parameters + kv_bytes(config, shape) * config.max_model_len


def kv_bytes(config: TrainConfig, shape: ModelShape) -> int:
    """Bytes of the sampler's KV cache for one token."""
    return 2 * compute_bytes(config) * shape.num_layers * shape.kv_width


def compute_bytes(config: TrainConfig) -> int:
    """Bytes of a number in the compute type."""
    return 4 if config.model.dtype == "float32" else 2


def smallest_device(devices: Sequence[str]) -> int | None:
    """Bytes of memory of the smallest of these GPUs, given by index or UUID; None where the driver cannot be asked."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handles = [
            pynvml.nvmlDeviceGetHandleByIndex(int(device))
            if device.isdecimal()
            else pynvml.nvmlDeviceGetHandleByUUID(device)
            for device in devices
        ]
        return min((int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) for handle in handles), default=None)
    except pynvml.NVMLError:
        return None
