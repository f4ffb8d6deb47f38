"""Stages that the engines were asked for before the flow came to them; they follow without a pause."""

from typing import Any


class Ahead:
    """References by stage and step, each taken once: of a step, and of the one that its push lets begin."""

    def __init__(self) -> None:
        self._versions: dict[int, int] = {}
        self._references: dict[tuple[str, int], Any] = {}

    def begin(self, step: int, policy_version: int, **references: Any) -> None:
        """Remember what the stages of a step will return; what was left of steps other than the last is forgotten."""
        self._versions = {last: version for last, version in self._versions.items() if last == step - 1}
        self._references = {key: value for key, value in self._references.items() if key[1] == step - 1}
        self._versions[step] = policy_version
        self.add(step, **references)

    def add(self, step: int, **references: Any) -> None:
        """Remember what further stages of a step that has begun will return."""
        self._references |= {(stage, step): reference for stage, reference in references.items()}

    def has(self, stage: str, step: int) -> bool:
        """Whether the stage of that step has been asked for."""
        return (stage, step) in self._references

    def take(self, stage: str, step: int) -> Any | None:
        """The reference of a stage of that step, once; None where it was not asked for."""
        return self._references.pop((stage, step), None)

    def see(self, stage: str, step: int) -> Any:
        """The reference of a stage of that step, which stays; raises KeyError where it was not asked for."""
        return self._references[stage, step]

    def is_of(self, step: int, policy_version: int) -> bool:
        """Whether the step was begun with this policy."""
        return self._versions.get(step) == policy_version

    def forget(self) -> None:
        """After a failure: what follows is asked for anew."""
        self._versions, self._references = {}, {}
