"""Seconds per step that Prefect, MLflow, Ray, grading and files cost, on the real flow with a model that costs nothing.

python -m benchmarks.orchestration --steps 6

Every update pauses for some seconds, as long as that of a real model, because what Prefect remembers of a task's tags
it forgets after five.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.machine import hardware, versions
from benchmarks.services import local_services
from benchmarks.timed_process import PAUSE_VARIABLE
from benchmarks.timeline import measure_flow
from benchmarks.workloads import WORKLOADS, write_problems

RESULTS = Path(__file__).parent / "results"
WORKLOAD = WORKLOADS["mini"]
GOAL_S = 0.5


@contextmanager
def paused_updates(seconds: float) -> Iterator[None]:
    """Every update takes `seconds` longer, in the trainer's process, which counts as busy."""
    os.environ[PAUSE_VARIABLE] = str(seconds)
    try:
        yield
    finally:
        del os.environ[PAUSE_VARIABLE]


def run(root: Path, *, num_steps: int, pause_s: float) -> dict[str, Any]:
    """Measure `num_steps` steps, after a first one and before the last, which evaluates."""
    model = root / "model"
    code = f"from pathlib import Path; from tests.tiny_model import build_tiny_model as b; b(Path({str(model)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True)
    data = write_problems(root / "data", num_words=WORKLOAD.num_words)
    config = WORKLOAD.config(model, data) | {"total_steps": num_steps + 2}
    with local_services(root), paused_updates(pause_s):
        history = measure_flow(config)
    steps = [{key: value for key, value in record.items() if key.startswith("account/")} for record in history]
    median = {key: statistics.median(step[key] for step in steps) for key in steps[0]}
    public = WORKLOAD.public(config)
    return {"hardware": hardware(), "versions": versions(), "config": public, "median": median, "steps": steps}


def main() -> None:
    """Print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--pause", type=float, default=6.0, metavar="SECONDS")
    parser.add_argument("--out", type=Path, default=RESULTS / "orchestration.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="drgrpo-bench-") as folder:
        result = run(Path(folder), num_steps=options.steps, pause_s=options.pause)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nseconds per step, median of {options.steps}")
    for key, value in result["median"].items():
        print(f"  {key.removeprefix('account/').replace('_', ' '):24s} {value:8.3f}")
    cost = result["median"]["account/orchestration"]
    print(
        f"Orchestration costs {cost:.2f} s a step; {'below' if cost < GOAL_S else 'NOT below'} the goal of {GOAL_S} s."
    )


if __name__ == "__main__":
    main()
