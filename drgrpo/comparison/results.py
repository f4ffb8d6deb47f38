"""The result of an arm and seed as one JSON file: everything that the report needs, so the report can be made anew."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drgrpo.durable import replace_file

Result = Mapping[str, Any]
"""What `drgrpo.comparison.outcome.arm_result` returns."""


def write_result(path: Path, result: Result) -> None:
    """Write the result at once, a line for each key."""
    lines = [f" {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in result.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def read_results(folder: Path, arms: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Results in `folder`, by seed within an arm, arms in the order of `arms`; then the others by name.

    Raises: ValueError for a file that is none.
    """
    results = []
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        if not isinstance(result, dict) or not {"arm", "seed", "scores", "training"} <= result.keys():
            raise ValueError(f"{path}: not the result of an arm")
        results.append(result)
    order = {name: place for place, name in enumerate(arms)}
    return sorted(results, key=lambda r: (order.get(r["arm"], len(order)), r["arm"], r["seed"]))
