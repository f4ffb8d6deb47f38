"""The tables of docs/baseline.md, from the results in benchmarks/results/baseline/<task>/.

python -m benchmarks.baseline_page docs/baseline.md      # rewrites the parts between the markers
"""

import re
import sys
from pathlib import Path

from drgrpo.comparison.cells import arm_rows, run_rows, score_rows
from drgrpo.comparison.results import read_results
from drgrpo.comparison.table import comparison_table
from drgrpo.report import markdown_table

RESULTS = Path(__file__).parent / "results" / "baseline"
_ARMS = ("dr-grpo", "grpo")
_PART = re.compile(r"(<!-- baseline: ([a-z0-9-]+) -->\n).*?(<!-- /baseline -->)", re.DOTALL)


def tables(folder: Path) -> str:
    """Scores, arms and runs of a task's results."""
    results = read_results(folder, _ARMS)
    parts = (score_rows(comparison_table(results)), arm_rows(results), run_rows(results))
    return "\n\n".join(markdown_table(part).strip() for part in parts)


def rewritten(document: str, results: Path = RESULTS) -> str:
    """A document with each part between markers replaced by the tables of the task that it names."""
    return _PART.sub(lambda found: f"{found[1]}\n{tables(results / found[2])}\n\n{found[3]}", document)


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(rewritten(page.read_text()))
