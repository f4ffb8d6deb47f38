"""What a run's id may be: it names a directory, so it cannot lead out of the directory of runs."""

import re

from drgrpo.config.errors import ConfigError, Mistake

_ALLOWED = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")


def check_run_id(text: str, *, field: str = "run_id") -> str:
    """`text` itself. Raises ConfigError unless it is 1 to 128 letters, digits, `-` and `_`, a letter or digit first."""
    if not _ALLOWED.fullmatch(text):
        remedy = "give 1 to 128 letters, digits, - and _, beginning with a letter or digit"
        raise ConfigError([Mistake(field, text, "not the id of a run", remedy)])
    return text
