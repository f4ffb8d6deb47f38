"""A run that is killed again and again, until it has ended by itself; and what it must have in common with another."""

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drgrpo.report import read_history
from drgrpo.tables import find_table, read_table
from tests.faults.victims import processes

ROOT = Path(__file__).parents[2]

Blow = Callable[[str, int], None]
"""Called with the stage that begins and the policy version; it may kill something. The stage waits for its return."""


@dataclass
class Ended:
    """A run that has ended by itself."""

    root: Path
    run_id: str
    num_processes: int
    stages: list[tuple[str, int]] = field(default_factory=list)
    num_ended_by_ray: int = 0

    @property
    def directory(self) -> Path:
        return self.root / ".drgrpo" / "runs" / self.run_id

    def weights(self) -> dict[str, str]:
        """Digest of each file of the exported weights."""
        files = sorted((self.directory / "policy").glob("*.safetensors"))
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    def samples(self) -> list[list[dict[str, Any]]]:
        """Rows of every step's finished table, without the run's id."""
        steps = sorted((self.directory / "steps").iterdir())
        tables = [find_table(step / "advantage.parquet") for step in steps]
        assert all(tables), "a step's table is not whole"
        return [
            [
                {k: v for k, v in row.items() if k not in ("run_id", "grader_message")}
                for row in read_table(t).to_pylist()
            ]
            for t in tables
            if t
        ]

    def steps(self) -> list[float]:
        """The committed steps."""
        return [record["step"] for record in read_history(self.directory / "history.jsonl")]

    def points(self) -> list[tuple[str, int]]:
        """(key, step) of every point in MLflow, system metrics aside."""
        return self._mlflow("select key, step from metrics where key not like 'system/%' and run_uuid in")

    def status(self) -> list[tuple[str]]:
        """States of the runs in MLflow that are this run's: there should be one."""
        return self._mlflow("select status from runs where run_uuid in")

    def _mlflow(self, sql: str) -> list[tuple[Any, ...]]:
        own = f"(select run_uuid from tags where key = 'drgrpo.run_id' and value = '{self.run_id}')"
        with sqlite3.connect(self.root / ".drgrpo" / "mlflow.db") as connection:
            return connection.execute(f"{sql} {own}").fetchall()


def environment(root: Path, **more: str) -> dict[str, str]:
    """Environment of a flow whose state lies under `root`."""
    return {**os.environ, "DRGRPO_ROOT": str(root), "DRGRPO_DEVICE": "cpu", "PYTHONPATH": str(ROOT), **more}


@dataclass
class Attempt:
    """One process of a flow that has ended.

    Attributes:
        status: Exit status, minus the signal's number where one ended it.
        run_id: Of the run that it worked on.
        stages: (stage, policy version) of each stage that it began.
        output: What it printed besides.
        is_ended_by_ray: Whether Ray ended it, since a service of Ray's was gone. Where Ray does, nothing else can.
    """

    status: int
    run_id: str
    stages: list[tuple[str, int]]
    output: str
    is_ended_by_ray: bool = False


def run_once(root: Path, overrides: dict[str, Any], blow: Blow, run_id: str = "") -> Attempt:
    """Run the flow in one process, on `run_id` if there is one. If `blow` raises, all that runs is killed."""
    log = root / f"flow-{len(list(root.glob('flow-*.log'))) + 1}.log"
    with log.open("w") as errors:
        job = json.dumps({"overrides": overrides, "resume_from": run_id})
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "tests.faults.flow_process", job],
            cwd=ROOT, env=environment(root, DRGRPO_MAX_RESTARTS="20"), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
        )  # fmt: skip
    stages: list[tuple[str, int]] = []
    try:
        assert process.stdin is not None and process.stdout is not None
        for line in process.stdout:
            if line.startswith("stage "):
                _, stage, version, run_id = line.split()
                stages.append((stage, int(version)))
                blow(*stages[-1])
                with suppress(BrokenPipeError):  # the blow may have hit the flow
                    process.stdin.write("go on\n")
                    process.stdin.flush()
        status, output = process.wait(), log.read_text(errors="replace")
        return Attempt(status, run_id, stages, output, _is_ended_by_ray(process.pid, output))
    except BaseException:
        for _, left in processes(root):
            left.kill()
        raise


def _is_ended_by_ray(pid: int, output: str) -> bool:
    """Whether Ray said that it ends this process: in its log of it, or while it starts in what the process printed."""
    logs = Path(tempfile.gettempdir()).glob(f"drgrpo-ray-{pid}-*/session_2*/logs/python-core-driver-*")
    texts = [output, *(path.read_text(errors="replace") for path in logs)]
    return any(word in text for text in texts for word in ("program will terminate", "Terminate the process"))


def run_to_the_end(
    root: Path, overrides: dict[str, Any], blow: Blow, run_id: str = "", *, max_processes: int = 50
) -> Ended:
    """Run the flow, as often as its process is killed, until it ends by itself. Raises AssertionError when it fails."""
    attempts: list[Attempt] = []
    while len(attempts) < max_processes:
        attempts.append(run_once(root, overrides, blow, run_id))
        status, run_id = attempts[-1].status, attempts[-1].run_id
        if status == 0:
            stages = [stage for attempt in attempts for stage in attempt.stages]
            return Ended(root, run_id, len(attempts), stages, sum(one.is_ended_by_ray for one in attempts))
        is_killed = status == -signal.SIGKILL or (status == 1 and attempts[-1].is_ended_by_ray)
        assert is_killed, f"{status}: {attempts[-1].output[-6000:]}"
    raise AssertionError(f"the run died {max_processes} times")


def check_same(run: Ended, undisturbed: Ended) -> None:
    """The disturbed run has the same weights and samples, every step once, every point in MLflow once."""
    assert run.weights() == undisturbed.weights() != {}
    assert run.samples() == undisturbed.samples()
    assert run.steps() == undisturbed.steps()
    points = run.points()
    assert [point for point, count in Counter(points).items() if count > 1] == []
    # Seconds and sizes belong to the process that lived; what a gate found and nobody saw is shown a step later.
    wanted = {(key, step) for key, step in undisturbed.points() if not key.startswith(_OF_THE_PROCESS)}
    assert wanted - set(points) == set()
    assert run.status() == [("FINISHED",)]


_OF_THE_PROCESS = ("health/", "seconds/", "engine_seconds/", "checkpoint/", "rollout/tokens_per_s")
