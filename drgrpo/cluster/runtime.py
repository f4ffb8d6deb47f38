"""Ray itself, and the environment of the processes that it starts."""

import os
import re
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import ray
from ray.exceptions import RaySystemError

from drgrpo.cluster.services import end_workers, forget_services, watch_services
from drgrpo.config import TrainConfig
from drgrpo.leftovers import orphans
from drgrpo.settings import Settings

_PROJECT = Path(__file__).parents[2]
_OBJECT_STORE_BYTES = 512 << 20
_TEMP_PREFIX = "drgrpo-ray-"
# Above Ray's ports, below those that the system gives to outgoing connections.
_VLLM_PORTS = range(20000, 32000)
_LOGS = "run-logs"
"""Link in Ray's directory to the run's directory of logs."""


def start_ray(settings: Settings, logs: Path) -> None:
    """Join the cluster at `ray_address`, or start Ray inside this process, bound to loopback.

    What the embedded Ray's engines print goes to the directory `logs` when it stops, or when the next run finds that it
    was killed. Raises RaySystemError when it does not start.
    """
    _remove_leftovers()
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # else every engine runs at niceness 15
    with _handlers_kept():
        _init(settings, logs)


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself, and would end the process without closing the run."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _init(settings: Settings, logs: Path) -> None:
    if settings.ray_address:
        ray.init(address=settings.ray_address, log_to_driver=False)
        return
    # Socket paths are limited to 107 bytes, so the directory must be short.
    directory = Path(tempfile.mkdtemp(prefix=f"{_TEMP_PREFIX}{os.getpid()}-"))
    (directory / _LOGS).symlink_to(logs.absolute())
    # Ray asks for a token; without this one it would write its own to the user's home, readable by all.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        ray.init(
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            object_store_memory=_OBJECT_STORE_BYTES,
            _temp_dir=str(directory),
            log_to_driver=False,
        )
    except Exception as error:  # of any class: a process of Ray's died, or was too slow for Ray
        raise RaySystemError(f"Ray did not start: {error}") from error
    watch_services()


def stop_ray() -> None:
    """Leave the cluster, or stop the embedded one and keep what its engines printed."""
    raylet = forget_services()
    _detach()
    ray.shutdown()
    if raylet is not None:
        end_workers(raylet)
    for directory in Path(tempfile.gettempdir()).glob(f"{_TEMP_PREFIX}{os.getpid()}-*"):
        _remove(directory)


def _detach() -> None:
    """Shut down Ray's part of this process, taken from the sight of Python first.

    `ray.shutdown` does it the other way round, and a reference that another thread lets go of meanwhile makes Ray end
    the process, with status 1.
    """
    worker = ray._private.worker.global_worker
    if worker.mode == ray.SCRIPT_MODE and hasattr(worker, "core_worker"):
        core_worker = worker.core_worker
        del worker.core_worker
        core_worker.shutdown_driver()


def _remove_leftovers() -> None:
    """Remove what runs that were killed left: processes ended with them, directories and shared memory did not."""
    for directory in orphans(Path(tempfile.gettempdir()), re.compile(rf"{_TEMP_PREFIX}(\d+)-")):
        _remove(directory)
    for path in orphans():
        path.unlink(missing_ok=True)


def _remove(directory: Path) -> None:
    """Remove a directory of Ray's; what its engines printed goes to the run's logs, if the run is still there, and what
    Ray noted in the flow's process, which it may have ended."""
    logs = (directory / _LOGS).resolve()
    with suppress(OSError):  # a full disk must not stop a run that starts or hide why one ended
        if logs.parent.is_dir():
            logs.mkdir(exist_ok=True)
            for path in directory.glob("session_2*/logs/*"):
                if path.name.startswith(("worker-", "python-core-driver-")):
                    shutil.copy2(path, logs / path.name)
    shutil.rmtree(directory, ignore_errors=True)


def _allocator() -> dict[str, str]:
    """Ray's own jemalloc, told to keep what it has: glibc gives large tensors back, and faulting them in again at every
    micro-batch takes a third of an update on CPU."""
    library = Path(ray.__file__).parent / "core" / "libjemalloc.so"
    return (
        {"LD_PRELOAD": str(library), "MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1"} if library.exists() else {}
    )


def engine_environment(
    settings: Settings, config: TrainConfig, role: Literal["rollout", "trainer", "host"], *, on_gpu: bool
) -> dict[str, str]:
    """Environment variables of one engine process."""
    cores = settings.num_threads or len(os.sched_getaffinity(0))
    ranks = config.trainer.num_ranks
    threads = {"rollout": cores, "trainer": max(1, cores // ranks), "host": 1}[role]
    environment = {
        "PYTHONPATH": os.pathsep.join([str(_PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": str(threads),
        # Engines take turns on the same cores; a thread that spins while it waits slows the others.
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",
    }
    if not settings.ray_address:
        # All engines are on this machine, so none listens to another: vLLM, gloo and NCCL would take its first network.
        environment |= {"VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    if role == "rollout":
        environment |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": f"{settings.cpu_kvcache_gib:g}",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # vLLM listens some seconds after it has found a port free. Of the system's choice, with many runs beside
            # each other, another has it by then.
            "VLLM_PORT": str(secrets.choice(_VLLM_PORTS)),
        }
    if role == "trainer" and on_gpu and not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        # Micro-batches of many shapes share memory that torch would else cut to pieces, give back and ask for again.
        environment["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    if config.model.dtype == "float32" and on_gpu:
        environment["TRITON_F32_DEFAULT"] = "ieee"  # vLLM's attention would multiply with ten bits of mantissa
    if config.trainer.deterministic and on_gpu:
        environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # what torch asks for before cuBLAS is deterministic
        environment["VLLM_BATCH_INVARIANT"] = "1"  # what is sampled again after a death is what was sampled before
    if not on_gpu:
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", **_allocator()}
    # What the operator has set for vLLM wins; the thread counts are ours, since every engine has its own share.
    return environment | {key: os.environ[key] for key in environment if key.startswith("VLLM_") and key in os.environ}
