"""Stages of a step that the engines were asked for before the flow came to them; they follow without a pause."""

from typing import Any


class Ahead:
    """References by stage, of one step at a time; each is used once."""

    def __init__(self) -> None:
        self._of: tuple[int, int] | None = None
        self._references: dict[str, Any] = {}

    def begin(self, step: int, policy_version: int, **references: Any) -> None:
        """Remember what the stages of a step will return; what was left of another step is forgotten."""
        self._of, self._references = (step, policy_version), references

    def add(self, **references: Any) -> None:
        """Remember what further stages of the same step will return."""
        self._references |= references

    def has(self, stage: str, step: int) -> bool:
        """Whether the stage of that step has been asked for."""
        return stage in self._references and self._of is not None and self._of[0] == step

    def take(self, stage: str, step: int) -> Any | None:
        """The reference of a stage of that step, once; None where it was not asked for."""
        return self._references.pop(stage) if self.has(stage, step) else None

    def see(self, stage: str) -> Any:
        """The reference of a stage, which stays; raises KeyError where there is none."""
        return self._references[stage]

    def is_of(self, step: int, policy_version: int) -> bool:
        """Whether the step was begun with this policy."""
        return self._of == (step, policy_version)

    def forget(self) -> None:
        """After a failure: what follows is asked for anew."""
        self._of, self._references = None, {}
