"""A mistake in a configuration, and the error that lists all of them at once."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from drgrpo.redaction import is_secret, mask

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Mistake:
    """One wrong, contradictory or inert value: which field, what it holds, what is wrong, what to do.

    `also` names the other fields that the judgement rests on; it is dropped when one of them is itself invalid. As text
    it shows no secret.
    """

    field: str
    value: Any
    problem: str
    remedy: str
    severity: Severity = "error"
    also: tuple[str, ...] = ()

    def __str__(self) -> str:
        value = "***" if is_secret(self.field) else shortened(self.value)
        return printable(mask(f"{_cut(self.field, 120)} = {value}: {self.problem}; {self.remedy}"))


class ConfigError(ValueError):
    """Every mistake of a configuration, one a line; `mistakes` holds them."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__(self.mistakes)

    def __str__(self) -> str:
        count = len(self.mistakes)
        heading = f"{count} {'mistake' if count == 1 else 'mistakes'} in the configuration"
        return printable(mask("\n".join([f"{heading}:", *(f"  - {mistake}" for mistake in self.mistakes)])))


def printable(text: str) -> str:
    """`text` with every control, invisible or direction-changing character but line ends as an escape."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def shortened(value: Any, limit: int = 80) -> str:
    """Python's form of a value without secrets, cut in the middle to `limit` characters."""
    return _cut(mask(repr(value)), limit)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit // 2]}...{text[-(limit // 2) + 3 :]}"
