"""Make a report from results: `python -m drgrpo.comparison RESULTS_DIR OUT_DIR [ARM ...]`."""

import sys
from pathlib import Path

from drgrpo.comparison.report import write_report
from drgrpo.comparison.results import read_results

if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    folder, out, *arms = sys.argv[1:]
    results = read_results(Path(folder), arms)
    if not results:
        sys.exit(f"{folder}: there are no results in it")
    print(write_report(Path(out), results, title=" against ".join(dict.fromkeys(r["arm"] for r in results)))["report"])
