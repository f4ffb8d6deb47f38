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
    config: TrainConfig, *, num_parameters: int, free_bytes: int, on_cpu: bool, kvcache_bytes: int, train: bool = True
) -> list[Mistake]:
    """Host memory for weights and, with `train`, gradients and optimizer state, where these live in host memory."""
    needed = host_bytes(config, num_parameters=num_parameters, on_cpu=on_cpu, kvcache_bytes=kvcache_bytes, train=train)
    if needed <= free_bytes:
        return []
    problem = (
        f"a model of {num_parameters / 1e6:.0f} M parameters needs about {needed / GIB:.1f} GiB of memory, "
        f"{free_bytes / GIB:.1f} GiB are free"
    )
    remedy = "take a smaller model or free memory"
    if not on_cpu:
        remedy = "set trainer.offload_optimizer to false, or free memory" if train else "free memory"
    elif kvcache_bytes > GIB:
        remedy += ", or lower DRGRPO_CPU_KVCACHE_GIB"
    return [Mistake("model.path", config.model.path, problem, remedy)]


def host_bytes(
    config: TrainConfig, *, num_parameters: int, on_cpu: bool, kvcache_bytes: int, train: bool = True
) -> int:
    """Bytes of host memory: 12 a parameter for float32 weights and two moments, 4 for the gradient, and the copies.

    Without `train` there is the sampler's copy alone. Offloaded from a GPU, DeepSpeed keeps the gradient twice: added
    up, and as the optimizer reads it.
    """
    compute = compute_bytes(config)
    if not on_cpu:
        offloaded = train and config.trainer.offload_optimizer
        return PROCESS_BYTES + ((12 + 8) * num_parameters if offloaded else 0)
    reference = compute * num_parameters if config.loss.kl_coef > 0 else 0
    trainer = (12 + 4 + compute) * num_parameters + reference if train else 0
    sampler = config.placement.num_rollout_engines * (compute * num_parameters + kvcache_bytes)
    return PROCESS_BYTES + trainer + sampler


def check_disk(
    config: TrainConfig, *, num_parameters: int, free_bytes: int, directory: Path, train: bool = True
) -> list[Mistake]:
    """Room for the tables and, with `train`, the exported policy and the checkpoints.

    These are the ones kept, the best among them, and the one being written.
    """
    kept = config.checkpoint.keep_last + 2 if config.checkpoint.has_cadence else 1
    exported = config.checkpoint.export * compute_bytes(config) * num_parameters
    needed = RUN_FILE_BYTES + (kept * 12 * num_parameters + exported if train else 0)
    if needed <= free_bytes:
        return []
    what, remedy = "tables", "free space, or set DRGRPO_RUNS_DIR to another disk"
    if train:
        what = f"{kept} checkpoints of 12 bytes a parameter"
        remedy = "free space, set DRGRPO_RUNS_DIR to another disk, or lower checkpoint.keep_last"
    problem = f"a run leaves about {needed / GIB:.1f} GiB ({what}), {free_bytes / GIB:.1f} GiB are free"
    return [Mistake("DRGRPO_RUNS_DIR", str(directory), problem, remedy)]


def check_devices(config: TrainConfig, *, num_devices: int, train: bool = True) -> list[Mistake]:
    """A device for each rank, which rollout engines share; without `train` one for each engine."""
    field, number = "trainer.num_ranks", config.trainer.num_ranks
    if not train:
        field, number = "placement.num_rollout_engines", config.placement.num_rollout_engines
    if number <= num_devices:
        return []
    who = "rank" if train else "engine"
    problem = f"each {who} needs a GPU of its own, there are {num_devices}"
    return [Mistake(field, number, problem, "lower it, or connect to a larger cluster")]


def check_machine(
    config: TrainConfig,
    settings: "Settings",
    *,
    num_parameters: int | None = None,
    on_cpu: bool = True,
    num_devices: int | None = None,
    train: bool = True,
) -> list[Mistake]:
    """All machine checks on this machine; what is unknown (None) is not judged.

    Without the number of parameters only the processes themselves and an empty run are accounted for, without `train`
    no trainer and nothing that it leaves behind.
    """
    size, runs = num_parameters or 0, settings.runs_dir
    kvcache = int(settings.cpu_kvcache_gib * GIB) if on_cpu else 0
    memory = check_memory(
        config, num_parameters=size, free_bytes=free_memory(), on_cpu=on_cpu, kvcache_bytes=kvcache, train=train
    )
    disk = check_disk(config, num_parameters=size, free_bytes=free_disk(runs), directory=runs, train=train)
    judged = num_devices is not None and not on_cpu
    devices = check_devices(config, num_devices=num_devices or 0, train=train) if judged else []
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
