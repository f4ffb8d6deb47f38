"""A module of this package run as a program, for what the flow process must not import or do itself."""

import os
import subprocess
import sys
from pathlib import Path


def run_module(module: str, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run `python -m <module>` with `given` as standard input, without GPU and network; what it prints is kept.

    The caller's directory is not searched for modules: a folder named gguf there would shadow the package.
    """
    search_path = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, search_path)),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-P", "-m", module, *arguments]
    return subprocess.run(command, input=given, env=environment, capture_output=True, text=True)
