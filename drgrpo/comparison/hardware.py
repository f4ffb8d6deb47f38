"""The machine that an arm ran on."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any


def hardware(device: str) -> dict[str, Any]:
    """Processor, cores, memory (GiB) and the GPUs of `device` (indices or UUIDs, comma-separated; empty: none)."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "gpus": _gpus(device) if device else [],
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gpus(device: str) -> list[str]:
    """Names of GPUs; their indices where the driver's tool is missing."""
    command = ["nvidia-smi", f"--id={device}", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return [f"GPU {index}" for index in device.split(",")]
    return done.stdout.strip().splitlines()
