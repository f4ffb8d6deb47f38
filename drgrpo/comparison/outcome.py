"""What a finished run of a comparison came to: scores, curves, cost, configuration, machine."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from drgrpo.comparison.plan import ArmRun
from drgrpo.config.overrides import config_digest, flatten
from drgrpo.metrics import EvaluationSummary, evaluation_metrics
from drgrpo.report import read_history
from drgrpo.tables import find_table, read_table
from drgrpo.tracking.context import environment_tags

_LENGTHS = {
    "length": "completion_length/mean",
    "length_correct": "completion_length/correct",
    "length_incorrect": "completion_length/incorrect",
    "length_truncated": "completion_length/truncated",
}
TRAINING = {
    "reward": "reward/mean",
    "accuracy": "rollout/accuracy",
    **_LENGTHS,
    "truncated_share": "rollout/truncated_share",
    "entropy": "update/entropy",
    "nll": "update/nll",
    "zero_variance_share": "rollout/zero_variance_share",
}
"""Column of `training` to the metric of a step."""
EVALUATION = {
    "greedy_pass1": "evaluation/greedy",
    "avg_at_k": "evaluation/avg_at_k",
    **{name: f"evaluation/{metric}" for name, metric in _LENGTHS.items()},
    "truncated_share": "evaluation/truncated_share",
}
"""Column of `evaluation` to the metric of an evaluation."""


def arm_result(run: ArmRun, directory: Path, *, device_seconds: float, hardware: Mapping[str, Any]) -> dict[str, Any]:
    """What a finished run came to.

    Args:
        run: The run.
        directory: Its directory.
        device_seconds: Seconds of its processes, interrupted ones included, times the devices that it had.
        hardware: The machine.

    The scores are those at the last step, `scores` by problem; `intervals` are bootstraps over problems. Tokens are
    those of completions. Curves are columns beside `step`, null where a step has no such completion.
    """
    last = run.config.total_steps
    summary = _evaluated(directory, last, run.config.evaluation.samples_per_problem)
    history = [record for record in read_history(directory / "history.jsonl") if record["step"] < last]
    evaluations = [record for record in read_history(directory / "evaluations.jsonl") if record["step"] <= last]
    return {
        "arm": run.arm,
        "seed": run.seed,
        "overrides": dict(run.overrides),
        "run_id": run.run_id,
        "steps": last,
        **_headline(summary),
        "tokens": {
            "sampled": int(_total(history, "rollout/completion_tokens")),
            "trained": int(_total(history, "update/trained_tokens")),
            "evaluated": sum(_num_tokens(path) for path in sorted(directory.glob("evaluations/*.parquet"))),
        },
        "device_minutes": round(device_seconds / 60, 2),
        **_provenance(run),
        "hardware": dict(hardware),
        "training": _columns(history, TRAINING),
        "evaluation": _columns(evaluations, EVALUATION),
        "scores": {name: summary.scores[name] for name in ("greedy", "avg_at_k") if name in summary.scores},
    }


def _evaluated(directory: Path, step: int, k: int) -> EvaluationSummary:
    table = find_table(directory / "evaluations" / f"{step:06d}.parquet")
    if table is None:
        raise FileNotFoundError(f"{directory}: there is no whole table of the evaluation after step {step}")
    return evaluation_metrics(read_table(table), k=k)


def _provenance(run: ArmRun) -> dict[str, Any]:
    """Configuration, commit and versions."""
    tags = environment_tags()
    return {
        "config_digest": config_digest(run.config),
        "config": flatten(run.config),
        "git_commit": tags.get("mlflow.source.git.commit", ""),
        "versions": {key.removeprefix("version."): v for key, v in tags.items() if key.startswith("version.")},
    }


def _headline(summary: EvaluationSummary) -> dict[str, Any]:
    """The scores with their intervals; a score that was not measured is null."""
    names = {"greedy_pass1": "greedy", "avg_at_k": "avg_at_k"}
    intervals = {name: summary.interval(s) for name, s in names.items() if s in summary.scores}  # type: ignore[arg-type]
    values = {name: intervals[name][0] if name in intervals else None for name in names}
    if summary.k == 8:
        values["avg_at_8"] = values["avg_at_k"]
    return {
        "k": summary.k,
        "num_problems": max(len(scores) for scores in summary.scores.values()),
        **values,
        "intervals": {name: list(interval[1:]) for name, interval in intervals.items()},
    }


def _columns(records: Sequence[Mapping[str, float]], names: Mapping[str, str]) -> dict[str, list[float | None]]:
    columns: dict[str, list[float | None]] = {"step": [record["step"] for record in records]}
    for name, metric in names.items():
        columns[name] = [_rounded(record.get(metric)) for record in records]
    return columns


def _rounded(value: float | None) -> float | None:
    """Six significant digits keep the file small; null for what is missing or not finite."""
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None


def _total(records: Sequence[Mapping[str, float]], metric: str) -> float:
    return sum(value for record in records if math.isfinite(value := record.get(metric, 0.0)))


def _num_tokens(path: Path) -> int:
    table = find_table(path)
    return pc.sum(pc.list_value_length(read_table(table)["completion_ids"])).as_py() or 0 if table else 0
