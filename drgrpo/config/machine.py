"""Checks of the machine before any engine starts: memory, disk, devices. The estimates are rough and lean low.

Each check takes numbers; `check_machine` reads them from this machine.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from drgrpo.config.device_memory import GIB, compute_bytes
from drgrpo.config.errors import Mistake
from drgrpo.config.train import TrainConfig

if TYPE_CHECKING:
    from drgrpo.settings import Settings

# Interpreters, libraries and buffers of the flow, Ray and the engines, without any weights.
PROCESS_BYTES = 3 * GIB
# Sample tables, metrics and plots of a run.
RUN_FILE_BYTES = GIB // 2
CGROUP = Path("/sys/fs/cgroup")


def check_memory(
    config: TrainConfig, *, num_parameters: int, free_bytes: int, on_cpu: bool, kvcache_bytes: int
) -> list[Mistake]:
    """Host memory for weights, gradients and optimizer state, where these live in host memory."""
    needed = host_bytes(config, num_parameters=num_parameters, on_cpu=on_cpu, kvcache_bytes=kvcache_bytes)
    if needed <= free_bytes:
        return []
    problem = (
        f"a model of {num_parameters / 1e6:.0f} M parameters needs about {needed / GIB:.1f} GiB of memory, "
        f"{free_bytes / GIB:.1f} GiB are free"
    )
    remedy = "take a smaller model or free memory"
    if not on_cpu:
        remedy = "set trainer.offload_optimizer to false, or free memory"
    elif kvcache_bytes > GIB:
        remedy += ", or lower DRGRPO_CPU_KVCACHE_GIB"
    return [Mistake("model.path", config.model.path, problem, remedy)]


def host_bytes(config: TrainConfig, *, num_parameters: int, on_cpu: bool, kvcache_bytes: int) -> int:
    """Bytes of host memory: 12 a parameter for float32 weights and two moments, 4 for the gradient, and the copies.

    Offloaded from a GPU, DeepSpeed keeps the gradient twice: added up, and as the optimizer reads it.
    """
    compute = compute_bytes(config)
    if not on_cpu:
        return PROCESS_BYTES + ((12 + 8) * num_parameters if config.trainer.offload_optimizer else 0)
    reference = compute * num_parameters if config.loss.kl_coef > 0 else 0
    trainer = (12 + 4 + compute) * num_parameters + reference
    sampler = config.placement.num_rollout_engines * (compute * num_parameters + kvcache_bytes)
    return PROCESS_BYTES + trainer + sampler


def check_disk(config: TrainConfig, *, num_parameters: int, free_bytes: int, directory: Path) -> list[Mistake]:
    """Room for the checkpoints kept, the best among them, the one being written, the exported policy and the tables."""
    kept = config.checkpoint.keep_last + 2 if config.checkpoint.has_cadence else 1
    exported = config.checkpoint.export * compute_bytes(config) * num_parameters
    needed = kept * 12 * num_parameters + exported + RUN_FILE_BYTES
    if needed <= free_bytes:
        return []
    problem = (
        f"a run leaves about {needed / GIB:.1f} GiB ({kept} checkpoints of 12 bytes a parameter), "
        f"{free_bytes / GIB:.1f} GiB are free"
    )
    remedy = "free space, set DRGRPO_RUNS_DIR to another disk, or lower checkpoint.keep_last"
    return [Mistake("DRGRPO_RUNS_DIR", str(directory), problem, remedy)]


def check_devices(config: TrainConfig, *, num_devices: int) -> list[Mistake]:
    """Devices for ranks and engines, which share them: the larger of the two counts."""
    ranks = config.trainer.num_ranks
    engines = config.placement.num_rollout_engines * config.rollout.tensor_parallel_size
    needed = max(ranks, engines)
    if needed <= num_devices:
        return []
    problem = f"{ranks} trainer ranks and {engines} devices of vLLM need {needed} GPUs, there are {num_devices}"
    remedy = "lower trainer.num_ranks or placement.num_rollout_engines, or connect to a larger cluster"
    return [Mistake("trainer.num_ranks", ranks, problem, remedy)]


def check_machine(
    config: TrainConfig,
    settings: "Settings",
    *,
    num_parameters: int | None = None,
    on_cpu: bool = True,
    num_devices: int | None = None,
) -> list[Mistake]:
    """All machine checks on this machine; what is unknown (None) is not judged.

    Without the number of parameters only the processes themselves and an empty run are accounted for.
    """
    size = num_parameters or 0
    kvcache = int(settings.cpu_kvcache_gib * GIB) if on_cpu else 0
    memory = check_memory(config, num_parameters=size, free_bytes=free_memory(), on_cpu=on_cpu, kvcache_bytes=kvcache)
    runs = settings.runs_dir
    disk = check_disk(config, num_parameters=size, free_bytes=free_disk(runs), directory=runs)
    devices = check_devices(config, num_devices=num_devices) if num_devices is not None and not on_cpu else []
    return [*memory, *disk, *devices]


def free_memory(cgroup: Path = CGROUP) -> int:
    """Bytes a new process may take: what the machine has available, or less in a container with a limit."""
    available = int(psutil.virtual_memory().available)
    limit = cgroup / "memory.max"
    if not limit.exists() or limit.read_text().strip() == "max":
        return available
    statistics = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    # File pages count as used and are given back under pressure.
    used = int((cgroup / "memory.current").read_text()) - int(statistics.get("inactive_file", 0))
    return min(available, int(limit.read_text()) - used)


def free_disk(directory: Path) -> int:
    """Bytes free on the disk that holds a directory, which may not exist yet."""
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    return shutil.disk_usage(existing).free
