"""Which fields are in doubt once mistakes are known: what rests on them cannot be judged."""

from collections.abc import Iterable

from drgrpo.config.areal_keys import AREAL_KEYS
from drgrpo.config.errors import Mistake
from drgrpo.config.paths import FIELDS, SECTIONS, nearest
from drgrpo.settings import PREFIX, Settings

_VARIABLES = frozenset(f"{PREFIX}{name.upper()}" for name in Settings.model_fields)


def in_doubt(mistakes: Iterable[Mistake], *fields: str) -> bool:
    """Whether a mistake is of one of `fields`, its section, a field in it, or a name that may have meant it."""
    doubted = [name for mistake in mistakes if mistake.severity == "error" for name in _doubted(mistake.field)]
    return any(
        name == field or name.startswith(f"{field}.") or field.startswith(f"{name}.")
        for name in doubted
        for field in fields
    )


def _doubted(field: str) -> Iterable[str]:
    if field in FIELDS or field in SECTIONS or field in _VARIABLES:
        return [field]
    if field.startswith(PREFIX):
        return _VARIABLES  # it may have meant any
    meant = nearest(field, tuple(AREAL_KEYS))
    return [field, *(AREAL_KEYS[meant].paths if meant in AREAL_KEYS else [meant] if meant else [])]
