"""The training flow in a process of its own, which says where it is, and waits to be told to go on.

`python -m tests.faults.flow_process '{"overrides": {...}, "resume_from": ""}'`: a line `stage <name> <step> <run id>`
when a stage begins, `start` among them, after which it reads a line from its standard input; at last `summary <json>`.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import drgrpo.opening
from drgrpo.cluster.cluster import Cluster
from drgrpo.config import TrainConfig
from drgrpo.run import Run
from flows.train import train

_timed = Run.timed


def _tell(stage: str, policy_version: int, run_id: str) -> None:
    print("stage", stage, policy_version, run_id, flush=True)
    sys.stdin.readline()


def _telling_start(*args: Any, **options: Any) -> Cluster:
    _tell("start", 0, options["run_id"])
    return Cluster(*args, **options)


@contextmanager
def _telling(run: Run, stage: str) -> Iterator[None]:
    _tell(stage, run.policy_version, run.run_id)
    with _timed(run, stage):
        yield


if __name__ == "__main__":
    drgrpo.opening.Cluster = _telling_start  # type: ignore[assignment, misc]
    Run.timed = _telling  # type: ignore[assignment, method-assign]
    job = json.loads(sys.argv[1])
    print("summary", json.dumps(train(TrainConfig(), job["overrides"], job["resume_from"])), flush=True)
