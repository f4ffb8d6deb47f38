"""A reward that costs nothing and leaves no group without a signal: a hash of the completion, as a fraction."""

import hashlib
from typing import Any


def fraction(text: str) -> float:
    """A number in [0, 1) that two texts have in common only if they are equal."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def reward(completion: str, answer: str, **problem: Any) -> float:
    """The fraction of the completion's text."""
    return fraction(completion)
