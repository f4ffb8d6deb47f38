"""A run's processes without models, to see where Ray places them. As a program it starts such runs and tells."""

import functools
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster as RayCluster
from ray.util.placement_group import placement_group_table

from drgrpo.cluster import placement
from drgrpo.cluster.cluster import Cluster
from drgrpo.cluster.engines import ROLE_VARIABLE, TARGETS
from drgrpo.config import TrainConfig
from drgrpo.config.errors import ConfigError
from drgrpo.settings import Settings

PROBES = {
    "trainer-0": [[-1.0, -2.0], [-3.0]],
    "rollout-0": [[-1.0, -2.0], [-3.75]],
    "rollout-1": [[-1.5, -2.5], [-3.5]],
}


class Placed:
    """Stands in for what a process of any role holds."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.name = os.environ[ROLE_VARIABLE]

    def where(self) -> tuple[str, str]:
        """Node, and the devices that the process sees."""
        return ray.get_runtime_context().get_node_id(), os.environ.get("CUDA_VISIBLE_DEVICES", "all")

    def score(self, _: Any, after: object = None) -> list[list[float]]:
        """Logprobs of three tokens, others in each process."""
        return PROBES.get(self.name, [])

    def address(self) -> tuple[str, int]:
        """No address is needed."""
        return "127.0.0.1", 0

    def _nothing(self, *_: Any) -> dict[str, float]:
        return {}

    start = connect = push = describe = probes = policy_version = _nothing


@contextmanager
def ray_of(kind: str) -> Iterator[Settings]:
    """Ray that is told of GPUs which are not there: `embedded` of two, `cluster` of one on each of two nodes."""
    if kind == "embedded":
        ray.init = functools.partial(ray.init, num_gpus=2)
        yield Settings()
        return
    cluster = RayCluster(initialize_head=True, head_node_args={"num_gpus": 1, "num_cpus": 1})
    cluster.add_node(num_gpus=1, num_cpus=1)
    try:
        yield Settings(ray_address=cluster.address)
    finally:
        cluster.shutdown()


def groups_left(settings: Settings) -> list[str]:
    """States of the cluster's placement groups as its next job sees them, waiting for the last job's to go."""
    ray.init(address=settings.ray_address, log_to_driver=False)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        states = [group["state"] for group in placement_group_table().values()]
        if set(states) <= {"REMOVED"}:
            break
        time.sleep(0.5)
    ray.shutdown()
    return states


def run(settings: Settings, num_ranks: int, num_engines: int, directory: Path, *, train: bool = True) -> dict[str, Any]:
    """Where the processes of a run were, what a push said of two samplers, or why it was refused and how soon."""
    config = TrainConfig.model_validate(
        {"trainer": {"num_ranks": num_ranks}, "placement": {"num_rollout_engines": num_engines}}
    )
    started = time.monotonic()
    try:
        cluster = Cluster(config, settings, model_path=directory, run_id="placed", run_dir=directory, train=train)
    except ConfigError as error:
        return {"refused": str(error), "seconds": time.monotonic() - started}
    engines = cluster.engines
    found: dict[str, Any] = {
        role: [process.call("where") for process in processes]
        for role, processes in (("trainer", engines.ranks), ("rollout", engines.rollout), ("host", [engines.host]))
    }
    found["push"] = cluster.push(1) if train else {}
    groups = [group for group in placement_group_table().values() if group["state"] == "CREATED"]
    found["groups"] = [(group["strategy"], len(group["bundles"])) for group in groups]
    cluster.close()
    return found


def main(kind: str, directory: Path) -> None:
    """Print the placements of several runs as JSON."""
    TARGETS.update(dict.fromkeys(TARGETS, "tests.engines.placed.Placed"))
    with ray_of(kind) as settings:
        found: dict[str, Any] = {"pairs": run(settings, 2, 2, directory)}
        if kind == "cluster":
            found["evaluation"] = run(settings, 2, 1, directory, train=False)
            found["on CPU"] = run(settings.model_copy(update={"device": "cpu"}), 3, 2, directory)
        placement.WAIT_S = 3.0
        found["too many"] = run(settings, 3, 1, directory)
        if kind == "cluster":
            found["left"] = groups_left(settings)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
