"""A cluster without engines: it keeps the books of a run, so that the flow's order and recovery can be watched.

Its policy is a text that every update extends by the digest of the table it trained on.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from drgrpo import checkpoints
from drgrpo.checkpoints.directory import STATE
from drgrpo.cluster.cluster import EngineLost
from drgrpo.config import TrainConfig
from drgrpo.metrics import sample_metrics
from drgrpo.settings import Settings
from drgrpo.tables import TableRef, find_table, read_table, write_table
from tests.growing_table import add_columns

NUM_PROBLEMS = 3
_WEIGHTS = "weights-00001.safetensors"


@dataclass
class Script:
    """What happened, and what is to go wrong: `failures` maps a call (`update-1`) to how often it raises."""

    calls: list[str] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    failure: str = "fails on purpose"
    clusters: list["FakeCluster"] = field(default_factory=list)

    def start(self, config: TrainConfig, settings: Settings, **options: Any) -> "FakeCluster":
        """Stands in for the constructor of `Cluster`."""
        self.note("start")
        self.clusters.append(FakeCluster(self, config, **options))
        return self.clusters[-1]

    def note(self, call: str) -> None:
        """Record a call, and fail if it is its turn to."""
        self.calls.append(call)
        if self.failures.get(call, 0) > 0:
            self.failures[call] -= 1
            raise RuntimeError(f"{call} {self.failure}")


class FakeCluster:
    """The methods of `drgrpo.cluster.cluster.Cluster`."""

    def __init__(
        self, script: Script, config: TrainConfig, *, model_path: Path, run_id: str, run_dir: Path, train: bool
    ) -> None:
        self.script, self.config, self.run_dir, self.is_training = script, config, run_dir, train
        self.policy, self.is_closed, self.is_saving = "initial", False, False
        self.pushed: tuple[int, str] = (0, self.policy)
        digests = {"train": "a" * 64, "evaluation": "b" * 64}
        self.data = {
            split: {"source": f"/data/{split}.jsonl", "digest": digest, "num_problems": NUM_PROBLEMS}
            for split, digest in digests.items()
        } | {"dropped": {"train_duplicates": 2}}

    def begin_rollout(self, step: int, policy_version: int) -> None:
        self._check_version(policy_version)

    def has_begun(self, stage: str, step: int) -> bool:
        return False

    def has_graded(self, step: int, *, within_s: float) -> bool:
        return False

    def rollout(self, step: int, policy_version: int) -> tuple[TableRef, dict[str, float]]:
        self.script.note(f"rollout-{step}")
        self._check_version(policy_version)
        rows = self._rows(step, NUM_PROBLEMS, self.config.rollout.group_size)
        return write_table(self._path(step, "rollout"), rows), {"engine_seconds/generate": 0.25}

    def score(self, table: TableRef, step: int) -> TableRef:
        self.script.note(f"reward-{step}")
        return add_columns(table, self._path(step, "reward"), _graded(table.num_rows))

    def advantages(self, table: TableRef, step: int) -> tuple[TableRef, dict[str, float]]:
        self.script.note(f"advantage-{step}")
        size = self.config.rollout.group_size
        rewards = np.array(read_table(table)["reward"]).reshape(-1, size)
        advantages = (rewards - rewards.mean(axis=1, keepdims=True)).flatten()
        finished = add_columns(table, self._path(step, "advantage"), {"advantage": advantages.tolist()})
        sizes = {"num_groups": NUM_PROBLEMS, "group_size": size}
        return finished, sample_metrics(read_table(finished), **sizes, max_completion_tokens=8)

    def demonstrations(self, step: int) -> tuple[TableRef, dict[str, float]]:
        self.script.note(f"demonstrations-{step}")
        ids = [[step + 3, problem] for problem in range(NUM_PROBLEMS)]
        columns: dict[str, list[Any]] = {
            "group_id": list(range(NUM_PROBLEMS)),
            "completion_ids": ids,
            "advantage": [1.0] * NUM_PROBLEMS,
        }
        path = self._path(step, "advantage")
        return find_table(path) or write_table(path, columns), {"demonstrations/num_completions": float(NUM_PROBLEMS)}

    def update(self, table: TableRef, step: int) -> dict[str, float]:
        self.script.note(f"update-{step}")
        self.policy = hashlib.sha256(f"{self.policy}/{table.sha256}".encode()).hexdigest()
        return {"update/loss": 0.5, "engine_seconds/update": 0.125}

    def push(self, policy_version: int) -> dict[str, float]:
        self.script.note(f"push-{policy_version}")
        self.pushed = (policy_version, self.policy)
        return {"sync/mean_abs_logprob_diff": 0.0}

    def evaluate(self, step: int, policy_version: int) -> TableRef:
        self.script.note(f"evaluate-{step}")
        if self.is_training:
            self._check_version(policy_version)
        samples = self.config.evaluation.samples_per_problem
        parts = [(mode, self._rows(step, NUM_PROBLEMS, n)) for mode, n in (("greedy", 1), ("sampled", samples))]
        merged: dict[str, list[Any]] = {}
        for mode, rows in parts:
            count = len(rows["seed"])
            for name, values in {**rows, **_graded(count), "mode": [mode] * count}.items():
                merged.setdefault(name, []).extend(values)
        return write_table(self.run_dir / "evaluations" / f"{step:06d}.parquet", merged)

    def export(self, directory: Path) -> Path:
        self.script.note("export")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "policy.txt").write_text(self.policy)
        return directory

    def save_checkpoint(self, directory: Path, state: dict[str, Any]) -> dict[str, float]:
        self.script.note(f"checkpoint-{state['step']}")
        partial = checkpoints.begin(directory)
        files = {
            STATE: checkpoints.write_json(partial / STATE, state | {"policy": self.policy}),
            _WEIGHTS: checkpoints.write_tensors(partial / _WEIGHTS, {"w": np.zeros(1, np.float32)}),
        }
        checkpoints.publish(partial, directory, files)
        self.is_saving = True
        return {}

    def wait_for_checkpoint(self) -> dict[str, float]:
        written = {"seconds/checkpoint_write": 0.125} if self.is_saving else {}
        self.is_saving = False
        return written

    def load_checkpoint(self, directory: Path) -> dict[str, Any]:
        self.script.note(f"load-{directory.name}")
        state = checkpoints.read_state(directory)
        self.policy = state["policy"]
        return state

    def weight_shapes(self) -> dict[str, list[int]]:
        return {"w": [1]}

    def raise_if_lost(self, error: Exception) -> None:
        if "is lost" in str(error):
            raise EngineLost(str(error)) from error

    def close(self) -> None:
        self.script.note("close")
        self.is_closed = True

    def _check_version(self, policy_version: int) -> None:
        assert self.pushed == (policy_version, self.policy), "sampled from a policy that is not the trainer's"

    def _path(self, step: int, stage: str) -> Path:
        return self.run_dir / "steps" / f"{step:06d}" / f"{stage}.parquet"

    def _rows(self, step: int, num_problems: int, samples: int) -> dict[str, Sequence[Any]]:
        """What a sampler writes: it depends on the policy, as real samples do."""
        index = [(problem, sample) for problem in range(num_problems) for sample in range(samples)]
        text = [f"{self.policy[:8]} {step} {problem} {sample}" for problem, sample in index]
        return {
            "step": [step] * len(index),
            "problem_id": [f"p{problem}" for problem, _ in index],
            "group_id": [problem for problem, _ in index],
            "sample_index": [sample for _, sample in index],
            "seed": list(range(len(index))),
            "prompt": ["1 + 1 = "] * len(index),
            "prompt_ids": [[1, 2]] * len(index),
            "completion": text,
            "completion_ids": [[3] * (1 + sample) for _, sample in index],
            "finish_reason": ["length" if sample == 1 else "stop" for _, sample in index],
        }


def _graded(count: int) -> dict[str, list[Any]]:
    right = [row % 2 == 0 for row in range(count)]
    return {
        "reward": [float(r) for r in right],
        "reward_gsm8k": [float(r) for r in right],
        "correct": right,
        "grader_status": ["ok"] * count,
    }
