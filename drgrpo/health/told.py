"""Which findings were shown, or answered with "continue": a replay shows nothing and asks nobody twice."""

from collections.abc import Sequence
from pathlib import Path

from drgrpo.health.finding import Finding
from drgrpo.report import read_history, write_history


def is_told(path: Path, finding: Finding) -> bool:
    """Whether the finding needs nothing more. One that stops or rolls back always does, as long as its gate is true."""
    if finding.action not in ("warn", "pause"):
        return False
    return any(record.get(finding.metric) == finding.step for record in read_history(path))


def tell(path: Path, step: int, told: Sequence[Finding]) -> None:
    """Add to the file's record of `step`: metric to the step at which its gate became true."""
    if told:
        known = {key: value for record in read_history(path) if record["step"] == step for key, value in record.items()}
        write_history(path, {**known, "step": step, **{finding.metric: finding.step for finding in told}})
