"""`flows.arm` with engines that keep the books only: an arm as a process, quickly.

FAKE_ARM_DIR holds `<arm>-<seed>.json` for each arm in which something is to go wrong: at which call, how (kill, raise,
refuse, hang), and whether once. `calls.jsonl` there tells what was called.
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
            file.write(json.dumps([label, call, device, time.time()]) + "\n")
        plan = FOLDER / f"{label}.json"
        if plan.exists() and (planned := json.loads(plan.read_text()))["call"] == call:
            if planned.get("once", True):
                plan.unlink()
            fail(planned["how"])


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
