"""A part of a benchmark in a process of its own, with a time limit; nothing of it is left when it is over."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.guard import GRACE_S
from deployments.service import last_lines
from deployments.steps import ROOT

SHORTEST_S = 20.0
"""With less time left than this a part is not begun."""


@dataclass(frozen=True)
class Part:
    """A command, `python -m <arguments>`, that writes a JSON to `out`, and its limit in seconds."""

    name: str
    arguments: Sequence[str]
    out: Path
    limit_s: float

    def run(self, *, time_left_s: float) -> dict[str, Any]:
        """Run it; returns `status` (ok, failed, timed out, no time left), `seconds`, and the log's end unless ok.

        What it printed is in `<out>.log`.
        """
        if time_left_s < SHORTEST_S:
            return {"status": "no time left", "seconds": 0.0}
        self.out.unlink(missing_ok=True)
        log, started = self.out.with_suffix(".log"), time.monotonic()
        status = self._status(log, min(self.limit_s, time_left_s))
        outcome = {"status": status, "seconds": round(time.monotonic() - started, 1)}
        return outcome if status == "ok" else outcome | {"message": last_lines(log, 8)}

    def _status(self, log: Path, limit_s: float) -> str:
        # The guard ends all that the part starts, Ray and engines among it, with the part and with this process.
        command = [sys.executable, "-m", "deployments.guard", str(os.getpid()), sys.executable, "-m", *self.arguments]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.getenv("PYTHONPATH")]))}
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
            try:
                return "ok" if process.wait(limit_s) == 0 else "failed"
            except subprocess.TimeoutExpired:
                return "timed out"
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(GRACE_S + 15)
