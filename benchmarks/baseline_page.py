"""The tables and pictures of docs/baseline.md, from the results in benchmarks/results/baseline/<task>/.

python -m benchmarks.baseline_page docs/baseline.md      # rewrites the parts between the markers, and images/

The picture of a marker is images/baseline-<its last task>.png beside the page.

A marker that names several tasks compares the arms of all of them, with the seeds that every arm has.
"""

import re
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from drgrpo.comparison.cells import arm_rows, run_rows, score_rows
from drgrpo.comparison.plot import plot_comparison
from drgrpo.comparison.results import read_results
from drgrpo.comparison.table import comparison_table
from drgrpo.report import markdown_table

RESULTS = Path(__file__).parent / "results" / "baseline"
_ARMS = ("dr-grpo", "grpo")
_PART = re.compile(r"(<!-- baseline: ([a-z0-9 -]+) -->\n).*?(<!-- /baseline -->)", re.DOTALL)


def compared(*folders: Path) -> list[dict[str, Any]]:
    """Results of all folders with the seeds that every arm has."""
    results = [result for folder in folders for result in read_results(folder, _ARMS)]
    seeds = {arm: {r["seed"] for r in results if r["arm"] == arm} for arm in (r["arm"] for r in results)}
    shared = set.intersection(*seeds.values())
    return [result for result in results if result["seed"] in shared]


def tables(*folders: Path) -> str:
    """Scores, arms and runs of the tasks' results."""
    results = compared(*folders)
    parts = (score_rows(comparison_table(results)), arm_rows(results), run_rows(results))
    return "\n\n".join(markdown_table(part).strip() for part in parts)


def rewritten(document: str, results: Path = RESULTS) -> str:
    """A document with each part between markers replaced by the tables of the tasks that it names."""

    def part(found: re.Match[str]) -> str:
        return f"{found[1]}\n{tables(*(results / task for task in found[2].split()))}\n\n{found[3]}"

    return _PART.sub(part, document)


def plot(document: str, images: Path, results: Path = RESULTS) -> None:
    """The pictures of a document's markers, in few colours: a fourth of the bytes."""
    for found in _PART.finditer(document):
        tasks = found[2].split()
        shown = compared(*(results / task for task in tasks))
        path = images / f"baseline-{tasks[-1]}.png"
        plot_comparison(shown, comparison_table(shown), path, title=tasks[-1])
        with Image.open(path) as picture:
            few = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
        few.save(path, optimize=True)


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(rewritten(page.read_text()))
    plot(page.read_text(), page.parent / "images")
