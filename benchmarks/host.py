"""Seconds of the host between generation and update, on made-up completions of a workload's lengths; no engine runs.

python -m benchmarks.host --workload a --model DIRECTORY --data DIRECTORY --out FILE
"""

import json
import pickle
import random
import statistics
import tempfile
from array import array

from benchmarks.clock import now
from benchmarks.machine import hardware, versions
from benchmarks.options import workload_parser
from benchmarks.workloads import WORKLOADS
from drgrpo.config import TrainConfig
from drgrpo.host import Host
from drgrpo.rollout.sampling import Completion


def completions(host: Host, step: int) -> list[Completion]:
    """Random tokens for each request of a step, as many as it asks for at most."""
    rng, limit = random.Random(step), host.config.rollout.max_completion_tokens
    ids = range(len(host.tokenizer))
    lengths = [request.max_tokens or limit for request in host.requests(step)]
    return [Completion(array("i", rng.choices(ids, k=length)), "length", None) for length in lengths]


def measure(host: Host, *, repeats: int) -> dict[str, list[float]]:
    """Seconds of each stage, a step for each repeat after one that warms up.

    `transport` is pickling and unpickling what the sampler returns, `rollout` its table, while grading begins, and
    `grade` the rest of that; the trainer begins with `samples`, and need not wait for the tables `written`.
    """
    times: dict[str, list[float]] = {"transport": [], "rollout": [], "grade": [], "samples": [], "written": []}
    for step in range(repeats + 1):
        sampled = completions(host, step)
        marks = [now()]
        received = pickle.loads(pickle.dumps(sampled, protocol=5))
        marks.append(now())
        table = host.write_rollout(step, step, received)
        marks.append(now())
        rewards = host.grade(table)
        marks.append(now())
        samples = host.samples(table, rewards)
        marks.append(now())
        host.advantages(host.score(table, rewards, step), samples, step)
        marks.append(now())
        for stage, begin, end in zip(times, marks, marks[1:], strict=False):
            times[stage].append(end - begin)
    return {stage: seconds[1:] for stage, seconds in times.items()}


def main() -> None:
    """Measure, print the medians, write the JSON."""
    parser = workload_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    workload = WORKLOADS[options.workload]
    config = TrainConfig.model_validate(workload.config(options.model.resolve(), options.data.resolve()))
    with tempfile.TemporaryDirectory() as folder:
        host = Host(config, config.model.path, "benchmark", folder)
        try:
            seconds = measure(host, repeats=options.repeats)
        finally:
            host.close()
    medians = {stage: statistics.median(times) for stage, times in seconds.items()}
    about = {"workload": options.workload, "hardware": hardware(), "versions": versions()}
    waited = sum(seconds for stage, seconds in medians.items() if stage != "written")
    result = {**about, "median": {**medians, "waited_for": waited}, "seconds": seconds}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for stage, time in result["median"].items():
        print(f"{stage:12s} {1000 * time:8.1f} ms")


if __name__ == "__main__":
    main()
