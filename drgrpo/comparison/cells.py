"""The tables of a comparison as rows of text, for HTML and Markdown alike."""

import json
from collections.abc import Sequence

from drgrpo.comparison.results import Result
from drgrpo.comparison.table import Estimate, Interval, Row

_NONE = "–"


def score_rows(rows: Sequence[Row]) -> list[dict[str, str]]:
    """A row for each score and arm, in percent and points."""
    first = rows[0].arm if rows else ""
    return [
        {
            "score": row.score,
            "arm": row.arm,
            "mean": f"{100 * row.value.mean:.1f} %",
            "over problems": _percent(row.value.over_problems),
            "over seeds": _percent(row.value.over_seeds),
            **_difference(row.difference, first),
            "seeds": str(row.value.num_seeds),
            "problems": str(row.value.num_problems),
        }
        for row in rows
    ]


def arm_rows(results: Sequence[Result]) -> list[dict[str, str]]:
    """A row for each arm: what it sets."""
    arms = {result["arm"]: result["overrides"] for result in results}
    return [
        {"arm": arm, "sets": ", ".join(f"{key} = {_value(value)}" for key, value in sets.items()) or "as configured"}
        for arm, sets in arms.items()
    ]


def run_rows(results: Sequence[Result]) -> list[dict[str, str]]:
    """A row for each arm and seed: what it came to, what it cost."""
    return [
        {
            "arm": result["arm"],
            "seed": str(result["seed"]),
            "steps": str(result["steps"]),
            "greedy pass@1": _share(result["greedy_pass1"]),
            f"avg@{result['k']}": _share(result["avg_at_k"]),
            "tokens sampled": f"{result['tokens']['sampled']:,}",
            "trained on": f"{result['tokens']['trained']:,}",
            "in evaluation": f"{result['tokens']['evaluated']:,}",
            "device minutes": f"{result['device_minutes']:.1f}",
            "configuration": result["config_digest"][:12],
        }
        for result in results
    ]


def _difference(found: Estimate | None, first: str) -> dict[str, str]:
    names = (f"difference to {first}", "its interval over problems", "its interval over seeds")
    cells = (_point(found.mean), _points(found.over_problems), _points(found.over_seeds)) if found else None
    return dict(zip(names, cells or (_NONE,) * len(names), strict=True))


def _percent(interval: Interval | None) -> str:
    """An interval of a share; one over seeds may leave [0, 1], which no share does."""
    if interval is None:
        return _NONE
    low, high = (100 * min(max(end, 0.0), 1.0) for end in interval)
    return f"[{low:.1f}, {high:.1f}]"


def _points(interval: Interval | None) -> str:
    return _NONE if interval is None else f"[{', '.join(_point(end) for end in interval)}]"


def _point(share: float) -> str:
    """A difference in points; one that rounds to zero has no sign."""
    return f"{rounded:+.1f}" if (rounded := round(100 * share, 1)) else "0.0"


def _share(value: float | None) -> str:
    return _NONE if value is None else f"{100 * value:.1f} %"


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
