"""A result of an arm and seed, as a comparison writes it, for tests of what is made of results."""

from typing import Any

HOSTILE = '<script>alert(1)</script> $x^ & "q" http://evil.example/x.js'


def result(arm: str, seed: int, shift: float, **changes: Any) -> dict[str, Any]:
    """A result of two problems and three steps."""
    steps: list[float | None] = [0, 1, 2]
    names = ("reward", "length", "length_correct", "length_incorrect", "entropy", "zero_variance_share")
    return {
        "arm": arm,
        "seed": seed,
        "overrides": {"adv_norm.std_level": "group"} if shift else {},
        "steps": 3,
        "k": 8,
        "greedy_pass1": 0.5,
        "avg_at_k": 0.375 + shift,
        "tokens": {"sampled": 1200, "trained": 800, "evaluated": 300},
        "device_minutes": 2.5,
        "config_digest": "0123456789abcdef",
        "git_commit": "c0ffee",
        "versions": {"torch": "2.11"},
        "hardware": {"processor": HOSTILE, "gpus": []},
        "training": {"step": steps} | {name: [0.1 * seed + shift + step for step in range(3)] for name in names},
        "evaluation": {"step": [0, 3], "greedy_pass1": [0.25, 0.5], "avg_at_k": [0.25, 0.375 + shift]},
        "scores": {"greedy": {"p": 1.0, "q": 0.0}, "avg_at_k": {"p": 0.5 + shift, "q": 0.25 + shift}},
    } | changes
