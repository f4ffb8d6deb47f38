"""What is wrong with a source of problems, in words that name the field, its value and the remedy."""

import difflib
from collections.abc import Iterable


class DataError(ValueError):
    """Problems that cannot be read, are malformed or cannot become prompts."""


def suggest(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the known name nearest to `name`, with the known names where none is near."""
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if nearest:
        return f" (did you mean {nearest[0]!r}?)"
    return f" (there is {', '.join(map(repr, known))})" if known else ""
