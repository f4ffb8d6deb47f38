"""Text that no file, database or tokenizer takes."""

from collections.abc import Iterator
from typing import Any

from drgrpo.config.errors import Mistake
from drgrpo.config.train import TrainConfig


def check_text(config: TrainConfig) -> list[Mistake]:
    """No text may hold NUL characters or halves of surrogate pairs, which JSON can bring."""
    remedy = "write it without NUL characters and as valid Unicode"
    return [
        Mistake(path, text, "holds a NUL character or is not valid Unicode", remedy)
        for path, text in _texts(config.model_dump(), "")
        if "\0" in text or not _is_unicode(text)
    ]


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield path, key
            yield from _texts(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, path)


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)
