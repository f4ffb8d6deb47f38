"""What the benchmarks' command lines share: a workload with its model and problems, and settings in one word.

`tokens=16384,recompute` is {"tokens": 16384, "recompute": 1}.
"""

import argparse
from pathlib import Path

from benchmarks.workloads import WORKLOADS

Options = dict[str, float]


def parse_options(text: str) -> Options:
    """Names and numbers of comma-separated `name=number`; a bare name is 1. Raises ValueError for another value."""
    pairs = (item.partition("=") for item in text.split(",") if item)
    return {name: float(value) if value else 1.0 for name, _, value in pairs}


def workload_parser(description: str | None) -> argparse.ArgumentParser:
    """A command line with the workload, its model and problems, and the file for the result."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=sorted(WORKLOADS), required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="holds train.jsonl and test.jsonl")
    parser.add_argument("--out", type=Path, required=True)
    return parser
