"""The training flow in a process of its own, which says on its standard output where it is.

`python -m tests.faults.flow_process '{"overrides": {...}, "resume_from": ""}'`: a line `stage <name> <step> <run id>`
when a stage begins, at last `summary <json>`.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from drgrpo.config import TrainConfig
from drgrpo.run import Run
from flows.train import train

_timed = Run.timed


@contextmanager
def _telling(run: Run, stage: str) -> Iterator[None]:
    print(f"stage {stage} {run.policy_version} {run.run_id}", flush=True)
    with _timed(run, stage):
        yield


if __name__ == "__main__":
    Run.timed = _telling  # type: ignore[assignment, method-assign]
    job = json.loads(sys.argv[1])
    print("summary", json.dumps(train(TrainConfig(), job["overrides"], job["resume_from"])), flush=True)
