"""`make soak`: kill -9 of a random process of a run at a random moment, again and again; prints and writes a table.

    python -m tests.faults.soak --kills 50 --seed 0 --json soak.json

Runs of the tiny model on real engines follow each other until there were so many kills. Each has to end with the
weights and samples of an undisturbed run, with every step and every MLflow point once, and must leave no process, and
nothing in shared memory. Victims are the processes of the run; what serves it is in test_service_deaths.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from deployments.environment import DEFAULTS
from tests.faults.disturbed import ROOT, check_same, run_to_the_end
from tests.faults.victims import VICTIMS, kill, left_behind, shared_memory

STAGES = ("start", "sync", "rollout", "reward", "advantage", "update", "evaluate", "checkpoint")
KILLS_PER_RUN = 5


def overrides(model: Path, data: Path) -> dict[str, Any]:
    """Eight short steps on two ranks."""
    return {
        "total_steps": 8,
        "model.path": str(model), "model.dtype": "float32",
        "data.train": str(data), "data.eval": str(data), "data.prompts_per_step": 4, "data.max_prompt_tokens": 64,
        "rollout.group_size": 4, "rollout.max_completion_tokens": 16, "rollout.max_num_seqs": 32,
        "reward.functions": {"tests.flows.rewards:parity": 1.0}, "reward.truncated_reward": "keep",
        "optimizer.lr": 1e-3, "trainer.completions_per_update": 16, "trainer.num_ranks": 2,
        "evaluation.every_steps": 4, "evaluation.num_problems": 6, "checkpoint.every_steps": 3,
    }  # fmt: skip


class Executioner:
    """Kills something some moments after a stage began, at random, until a run has had its share."""

    def __init__(self, root: Path, chance: random.Random, num_kills: int) -> None:
        self.root, self.chance, self.left = root, chance, num_kills
        self.kills: list[dict[str, Any]] = []

    def __call__(self, stage: str, version: int) -> None:
        if self.left and self.chance.random() < 0.25:
            self.left -= 1
            delay = self.chance.uniform(0, 8.0 if stage == "start" else 0.6)
            victim = self.chance.choice(VICTIMS)
            threading.Timer(delay, self._kill, (victim, stage, version)).start()

    def _kill(self, victim: str, stage: str, version: int) -> None:
        if kill(self.root, victim) is not None:
            self.kills.append({"victim": victim, "stage": stage, "policy_version": version})
            print(f"{time.strftime('%X')} killed {victim}, moments after {stage} {version} began", flush=True)
        else:  # graders come and go, and while the engines start not all are there
            self.left += 1


def soak(num_kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """The kills and the seconds of each run; their state lies in `folder`. Raises AssertionError at a difference."""
    chance, started = random.Random(seed), time.monotonic()
    runs: list[dict[str, Any]] = []
    settings = overrides(*_inputs(folder))
    undisturbed = run_to_the_end(_root(folder, "undisturbed"), settings, lambda stage, version: None)
    while (done := sum(len(run["kills"]) for run in runs)) < num_kills:
        root, begun, in_memory = _root(folder, f"run-{len(runs)}"), time.monotonic(), shared_memory()
        blow = Executioner(root, chance, min(KILLS_PER_RUN, num_kills - done))
        run = run_to_the_end(root, settings, blow)
        check_same(run, undisturbed)
        left, names = left_behind(root), sorted(shared_memory() - in_memory)
        assert left == [] and names == [], (left, names)
        took = {"processes": run.num_processes, "ended_by_ray": run.num_ended_by_ray}
        runs.append({"kills": blow.kills, **took, "seconds": time.monotonic() - begun})
        print(f"run {len(runs)}: {len(blow.kills)} kills, {run.num_processes} processes, "
              f"{runs[-1]['seconds']:.0f} s, same weights", flush=True)  # fmt: skip
    kills = Counter(kill["stage"] for run in runs for kill in run["kills"])
    stages = {stage: kills[stage] for stage in STAGES}
    return {"seed": seed, "kills": done, "seconds": time.monotonic() - started, "stages": stages, "runs": runs}


def _root(folder: Path, name: str) -> Path:
    path = folder / name
    path.mkdir()
    return path


def _inputs(folder: Path) -> tuple[Path, Path]:
    model, data = folder / "model", folder / "data"
    code = f"from pathlib import Path; from tests.tiny_model import build_tiny_model as b; b(Path({str(model)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    data.mkdir()
    for split in ("train", "test"):
        rows = [{"question": f"{split}: {i} + 1", "answer": str(i + 1)} for i in range(12)]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return model, data


def main() -> None:
    """Run the soak under a Prefect server of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ.update(DEFAULTS)
    from prefect.testing.utilities import prefect_test_harness  # Prefect reads its environment when it is imported

    with prefect_test_harness(server_startup_timeout=180):
        from prefect.settings import PREFECT_API_URL

        os.environ["PREFECT_API_URL"] = str(PREFECT_API_URL.value())
        folder = Path(tempfile.mkdtemp(prefix="drgrpo-soak-"))
        print(f"logs, in case it fails: {folder}", flush=True)
        result = soak(options.kills, options.seed, folder)
        shutil.rmtree(folder)
    print(f"{result['kills']} kills in {len(result['runs'])} runs, {result['seconds'] / 60:.0f} minutes")
    print("kills by stage:", ", ".join(f"{stage} {count}" for stage, count in result["stages"].items()))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
