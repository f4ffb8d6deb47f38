"""A reward for random models: half of what they write earns it, so that nearly every group carries a signal."""

import os
import time
from pathlib import Path
from typing import Any


def parity(completion: str, answer: str, **problem: Any) -> float:
    """1 for a completion of an even number of characters, else 0."""
    return float(len(completion) % 2 == 0)


def slow_parity(completion: str, answer: str, **problem: Any) -> float:
    """`parity`, after a while: a step of 16 completions takes some seconds. A mark says who is at work."""
    mark = Path(os.environ["DRGRPO_ROOT"]) / f"grading-{os.getpid()}"
    mark.touch()
    time.sleep(0.3)
    mark.unlink()
    return parity(completion, answer, **problem)
