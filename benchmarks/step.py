"""Seconds of a whole training step through the Prefect flow, by what they were spent on.

python -m benchmarks.step --workload a --model DIRECTORY --data DIRECTORY --steps 3 --out FILE
"""

import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import hardware, num_parameters, versions
from benchmarks.options import workload_parser
from benchmarks.services import local_services
from benchmarks.timeline import measure_flow
from benchmarks.workloads import WORKLOADS

SHOWN = ("account/", "busy/", "host/", "update/", "rollout/", "sync/", "memory/", "engine_seconds/")


def medians(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Median over the records of every key that all of them have."""
    keys = sorted(set.intersection(*(set(record) for record in records)))
    return {key: statistics.median(record[key] for record in records) for key in keys}


def overridden(config: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """`config` with values set by `section.key=JSON`."""
    result = {name: dict(value) if isinstance(value, Mapping) else value for name, value in config.items()}
    for assignment in assignments:
        path, value = assignment.split("=", 1)
        section, key = path.split(".", 1)
        result.setdefault(section, {})[key] = json.loads(value)
    return result


def main() -> None:
    """Run one workload and write its JSON."""
    parser = workload_parser(__doc__)
    parser.add_argument("--steps", type=int, default=3, help="measured; a first and a last one come on top")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=JSON")
    options = parser.parse_args()

    workload = WORKLOADS[options.workload]
    config = overridden(workload.config(options.model.resolve(), options.data.resolve()), options.set)
    config["total_steps"] = options.steps + 2
    with tempfile.TemporaryDirectory(prefix="drgrpo-bench-") as folder, local_services(Path(folder)):
        steps = measure_flow(config)
    result = {
        "workload": options.workload,
        "hardware": hardware(),
        "versions": versions(),
        "config": workload.public(config),
        "num_parameters": num_parameters(options.model),
        "median": medians(steps),
        "steps": steps,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for key, value in result["median"].items():
        if key.startswith(SHOWN):
            print(f"{key:48s} {value:12.4f}")


if __name__ == "__main__":
    main()
