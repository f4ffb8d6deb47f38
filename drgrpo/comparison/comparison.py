"""One comparison: its runs, its directory, its place in MLflow, and what is known of each run.

The directory is the memory: `comparison.json`, `results/<arm>-<seed>.json` of every finished run, `spent/`, `logs/`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drgrpo.comparison.hardware import hardware
from drgrpo.comparison.outcome import arm_result
from drgrpo.comparison.plan import ArmRun
from drgrpo.comparison.report import write_report
from drgrpo.comparison.results import read_results, write_result
from drgrpo.device_lock import visible_devices
from drgrpo.durable import replace_json
from drgrpo.settings import Settings
from drgrpo.tables import find_table
from drgrpo.tracking import Tracker


class Comparison:
    """State that the arms' tasks share; made by `drgrpo.comparison.opening.open_comparison`."""

    def __init__(
        self, runs: Sequence[ArmRun], settings: Settings, run_id: str, *, experiment: str, name: str, tracker: Tracker
    ) -> None:
        self.runs, self.settings, self.run_id, self.tracker = list(runs), settings, run_id, tracker
        self.experiment, self.name = experiment, name
        self.directory = settings.runs_dir / run_id

    def devices(self) -> list[str]:
        """What each of the runs that go on at once gets as CUDA_VISIBLE_DEVICES; one empty text without GPUs."""
        if self.settings.device == "cpu" or self.settings.ray_address:
            return [""]
        size = max(run.num_devices for run in self.runs)
        found = visible_devices()
        devices = [",".join(found[i : i + size]) for i in range(0, len(found) - size + 1, size)]
        return devices * self.settings.runs_per_gpu or [""]

    def is_done(self, run: ArmRun) -> bool:
        """Whether the run has its summary and the evaluation of its last step."""
        directory = self._directory(run)
        last = directory / "evaluations" / f"{run.config.total_steps:06d}.parquet"
        return (directory / "summary.json").exists() and find_table(last) is not None

    def num_steps(self, run: ArmRun) -> int:
        """Steps of the run that are done."""
        history = self._directory(run) / "history.jsonl"
        # Asked for often, so the lines are counted and not read: each is one step.
        return min(history.read_bytes().count(b"\n") if history.exists() else 0, run.config.total_steps)

    def share(self) -> float:
        """Share of all steps of all runs that is done, in [0, 1]."""
        total = sum(run.config.total_steps for run in self.runs)
        return sum(self.num_steps(run) for run in self.runs) / total

    def job(self, run: ArmRun) -> dict[str, Any]:
        """What the run's process is told."""
        return {
            "config": run.config.model_dump(mode="json"),
            "run_id": run.run_id,
            "experiment": self.experiment,
            "name": f"{self.name} {run.label}",
            "tags": {
                "mlflow.parentRunId": self.tracker.run_id,
                "drgrpo.comparison": self.run_id,
                "drgrpo.arm": run.arm,
                "drgrpo.seed": str(run.seed),
            },
        }

    def log(self, run: ArmRun) -> Path:
        """What the run's processes printed."""
        return self.directory / "logs" / f"{run.label}.log"

    def seconds(self, run: ArmRun) -> float:
        """Seconds that the run's processes have had so far."""
        path = self._spent(run)
        return float(json.loads(path.read_text())["seconds"]) if path.exists() else 0.0

    def spend(self, run: ArmRun, seconds: float) -> None:
        """Note how many seconds the run's processes have had."""
        path = self._spent(run)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_json(path, {"seconds": round(seconds, 1)})

    def settle(self, run: ArmRun, device: str) -> None:
        """Write the result of a finished run, unless it is there."""
        path = self.directory / "results" / f"{run.label}.json"
        if not path.exists() or json.loads(path.read_text())["steps"] != run.config.total_steps:
            spent = self.seconds(run) * self.num_devices(run, device)
            found = arm_result(run, self._directory(run), device_seconds=spent, hardware=hardware(device))
            write_result(path, found)

    def num_devices(self, run: ArmRun, device: str) -> float:
        """Devices that a run has to itself: a part of one that several share, one machine where there is no GPU."""
        if self.settings.ray_address:
            return run.num_devices
        return len(device.split(",")) / self.settings.runs_per_gpu if device else 1

    def missing(self) -> list[str]:
        """Runs that are not finished, with what they came to."""
        return [
            f"{run.label} ({self.num_steps(run)} of {run.config.total_steps} steps)"
            for run in self.runs
            if not self.is_done(run)
        ]

    def finish(self) -> dict[str, Any]:
        """Make the report of what is there, log it to MLflow, and return its summary."""
        labels = {run.label for run in self.runs if self.is_done(run)}
        arms = list(dict.fromkeys(run.arm for run in self.runs))
        results = [r for r in read_results(self.directory / "results", arms) if f"{r['arm']}-{r['seed']}" in labels]
        mlflow = {
            "mlflow_run_id": self.tracker.run_id,
            "mlflow_url": self.tracker.run_url(self.settings.mlflow_ui_url),
        }
        about = {"comparison": self.run_id, "missing": self.missing(), **mlflow}
        summary = write_report(self.directory, results, title=f"{self.experiment}: {self.name}", about=about)
        for name in ("report.html", "report.png", "summary.json", "results"):
            if (path := self.directory / name).exists():
                self.tracker.log_artifact(path, "results" if path.is_dir() else "")
        return summary

    def _directory(self, run: ArmRun) -> Path:
        return self.settings.runs_dir / run.run_id

    def _spent(self, run: ArmRun) -> Path:
        return self.directory / "spent" / f"{run.label}.json"
