"""What goes into the grader pool and what comes out; plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

GradeStatus = Literal["ok", "timeout", "error"]


@dataclass(frozen=True, slots=True)
class GradeItem:
    """One completion to grade; `columns` holds the further columns of its row in the dataset."""

    completion: str
    answer: str
    question: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Grade:
    """The outcome: `reward` is the weighted sum of `per_function`, or 0 with the reason where the status is not ok."""

    reward: float
    per_function: Mapping[str, float]
    status: GradeStatus
    message: str = ""
