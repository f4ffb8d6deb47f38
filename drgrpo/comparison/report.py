"""The report of a comparison on disk: report.html, report.png and summary.json."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from drgrpo.comparison.cells import score_rows
from drgrpo.comparison.page import comparison_page
from drgrpo.comparison.plot import SECTIONS, plot_comparison
from drgrpo.comparison.results import Result
from drgrpo.comparison.table import comparison_table
from drgrpo.durable import replace_file

_INLINE_WIDTH = 13.0


def write_report(
    folder: Path, results: Sequence[Result], *, title: str, about: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write the three files into `folder`, each replaced at once; returns the summary.

    Args:
        folder: Made when missing.
        results: The JSON of each arm and seed; differences are to the first arm.
        title: Heading.
        about: More for the summary; `missing` lists runs that are not finished.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = comparison_table(results)
    plot_comparison(results, rows, folder / "report.png", title=title)
    with tempfile.TemporaryDirectory() as pictures:
        paths = {name: Path(pictures) / f"{name}.png" for name in SECTIONS}
        for name, path in paths.items():
            plot_comparison(results, rows, path, sections=[name], width=_INLINE_WIDTH)
        page = comparison_page(results, rows, paths, title=title, about=about or {})
    summary = {**(about or {}), "title": title, **_totals(results), "table": [asdict(row) for row in rows]}
    summary["shown"] = score_rows(rows)
    summary |= {"report": str(folder / "report.html"), "plot": str(folder / "report.png")}
    replace_file(folder / "report.html", page.encode())
    replace_file(folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False).encode())
    return summary


def _totals(results: Sequence[Result]) -> dict[str, Any]:
    return {
        "arms": list(dict.fromkeys(result["arm"] for result in results)),
        "seeds": sorted({result["seed"] for result in results}),
        "device_minutes": round(sum(result["device_minutes"] for result in results), 2),
        "tokens": {
            kind: sum(result["tokens"][kind] for result in results) for kind in ("sampled", "trained", "evaluated")
        },
    }
