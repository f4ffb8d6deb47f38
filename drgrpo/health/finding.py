"""What a health gate found, and the exceptions that end a run for it."""

from dataclasses import dataclass
from typing import Literal

Action = Literal["off", "warn", "pause", "stop", "rollback"]


@dataclass(frozen=True, slots=True)
class Finding:
    """A gate that became true. Its texts hold words of ours, names of settings and numbers, nothing else.

    Attributes:
        gate: Name of the gate, `entropy`.
        metric: What it watched, `update/entropy`.
        action: What is to be done, as configured.
        step: Iteration, counted from 0, at whose end the gate became true.
        seen: Value at that step; infinite where it was not a finite number.
        limit: What it was compared with: the configured limit, or the value that follows from the median or the best.
        last_good: Iterations done when the policy had not yet shown it: a state to roll back to has at most so many.
        is_open: Whether the gate is still true at the last step.
        message: What was seen, with its numbers and over which steps.
        remedy: What to try, by names of settings.
    """

    gate: str
    metric: str
    action: Action
    step: int
    seen: float
    limit: float
    last_good: int
    is_open: bool
    message: str
    remedy: str


class HealthStop(Exception):
    """A gate ends the run; `finding` says why, `reason` who decided it where that was not the gate alone."""

    def __init__(self, finding: Finding, reason: str = "") -> None:
        self.finding, self.reason = finding, reason
        super().__init__(finding, reason)

    def __str__(self) -> str:
        return _text("stopped the run", self.finding, self.reason)


class RollBack(Exception):
    """The run is to go on from before the finding: from a state of at most `finding.last_good` iterations."""

    def __init__(self, finding: Finding, reason: str = "") -> None:
        self.finding, self.reason = finding, reason
        super().__init__(finding, reason)

    def __str__(self) -> str:
        state = f"a state of at most {self.finding.last_good} iterations"
        return _text(f"rolls the run back to {state}", self.finding, self.reason)


def _text(what: str, finding: Finding, reason: str) -> str:
    because = f" ({reason})" if reason else ""
    return f"health gate {finding.gate} {what}{because}: {finding.message} {finding.remedy}"
