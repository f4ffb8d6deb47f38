"""Live progress of a run, read from the files that it writes: a line per step and evaluation, and what it does now."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.status import Status

from drgrpo.report import read_history


class Progress:
    """Prints what is new in a run's directory.

    Args:
        console: Where to; the line of the present stage is shown on a terminal only.
        run_dir: `<runs_dir>/<flow run id>`, which need not exist yet.
        total_steps: Iterations of the run.
    """

    def __init__(self, console: Console, run_dir: Path, total_steps: int) -> None:
        self._console, self._run_dir, self._total_steps = console, run_dir, total_steps
        self._num_steps = self._num_evaluations = 0
        self._status: Status = console.status("waiting for the worker")

    def __enter__(self) -> "Progress":
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def show(self, stage: str) -> None:
        """Print new steps and evaluations, and `stage` as what the run does now."""
        evaluations = read_history(self._run_dir / "evaluations.jsonl")
        steps = read_history(self._run_dir / "history.jsonl")
        lines = [(record["step"] + 1, _step_line(record, self._total_steps)) for record in steps[self._num_steps :]]
        lines += [(record["step"], _evaluation_line(record)) for record in evaluations[self._num_evaluations :]]
        for _, line in sorted(lines, key=lambda item: item[0]):
            self._console.print(line)
        self._num_evaluations, self._num_steps = len(evaluations), len(steps)
        self._status.update(f"{stage}  ({self._num_steps} of {self._total_steps} steps done)")


def _step_line(record: Mapping[str, float], total_steps: int) -> str:
    done, accuracy = record["step"] + 1, record.get("rollout/accuracy", float("nan"))
    return (
        f"step {done:3.0f} of {total_steps}  reward {record.get('reward/mean', float('nan')):.3f}  "
        f"accuracy {accuracy:6.1%}  {record.get('seconds/step', float('nan')):.1f} s"
    )


def _evaluation_line(record: Mapping[str, float]) -> str:
    mean, low, high = (record[f"evaluation/avg_at_k{end}"] for end in ("", "_low", "_high"))
    return f"evaluation after {record['step']:.0f} steps  accuracy {mean:.1%} [{low:.1%}, {high:.1%}]"
