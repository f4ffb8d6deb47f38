"""`flows.arm` with engines that keep the books only: an arm as a process, quickly.

FAKE_ARM_DIR holds `<arm>-<seed>.json` for each arm in which something is to go wrong: at which call, how (kill, raise,
refuse, hang), and whether once. `calls.jsonl` there tells what was called. With `together.json` there, a list of runs,
each of them waits at its first step until all are there.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import drgrpo.opening
import flows.arm
from drgrpo.config.errors import ConfigError, Mistake
from tests.flows.fake_cluster import FakeCluster, Script

FOLDER = Path(os.environ["FAKE_ARM_DIR"])


class LoudScript(Script):
    """A script that writes every call down, and fails as it is told to."""

    run_id = ""

    def start(self, *args: Any, **options: Any) -> FakeCluster:
        self.run_id = options["run_id"]
        return super().start(*args, **options)

    def note(self, call: str) -> None:
        label = "-".join(self.run_id.split("-")[-2:])
        device = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        with (FOLDER / "calls.jsonl").open("a") as file:
            file.write(json.dumps([label, call, device]) + "\n")
        if call == "rollout-0":
            meet()
        plan = FOLDER / f"{label}.json"
        if plan.exists() and (planned := json.loads(plan.read_text()))["call"] == call:
            if planned.get("once", True):
                plan.unlink()
            fail(planned["how"])


def meet() -> None:
    """Wait until all runs that are to go on at once have come to their first step."""
    path = FOLDER / "together.json"
    expected = set(json.loads(path.read_text())) if path.exists() else set()
    deadline = time.monotonic() + 300
    while expected - {run for run, call, *_ in read_calls() if call == "rollout-0"}:
        if time.monotonic() > deadline:
            raise TimeoutError("the other run did not come")
        time.sleep(0.05)


def read_calls() -> list[list[Any]]:
    """All calls so far; a line that is being written is left out."""
    lines = (FOLDER / "calls.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def fail(how: str) -> None:
    """What goes wrong."""
    print(f"about to {how}", flush=True)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hang":
        time.sleep(600)
    if how == "refuse":
        raise ConfigError([Mistake("field", 1, "is refused", "nothing helps")])
    raise ValueError("fails on purpose")


if __name__ == "__main__":
    drgrpo.opening.Cluster = LoudScript().start  # type: ignore[assignment,misc]
    sys.exit(flows.arm.main())
