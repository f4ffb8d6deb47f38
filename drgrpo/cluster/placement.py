"""Where the processes of a run are placed: rank i and rollout engine i in place i, since weights pass between them.

A place is a GPU of their own, on which each takes a half, or a machine where there is no GPU.
"""

from typing import Any

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from drgrpo.cluster.waiting import outcomes
from drgrpo.config import TrainConfig
from drgrpo.config.errors import ConfigError, Mistake
from drgrpo.settings import Settings

WAIT_S = 120.0
"""How long another job of the cluster may still hold what a run needs."""

_CPU_SHARE = 0.01  # engines claim no cores of Ray; a bundle has to claim something


class Places:
    """The places of a run, one bundle of a Ray placement group each; Ray frees them when this process leaves it.

    Embedded on a CPU there is one machine and nothing to reserve.
    """

    def __init__(self, config: TrainConfig, settings: Settings, *, on_gpu: bool, train: bool) -> None:
        """Reserve a place for each rank, without `train` for each rollout engine.

        Raises ConfigError when Ray has not given them after `WAIT_S` seconds.
        """
        self._num_gpus = 0.5 if on_gpu else 0
        self._group: Any = None
        if not on_gpu and not settings.ray_address:
            return
        count = config.trainer.num_ranks if train else config.placement.num_rollout_engines
        # Ranks on CPUs share memory and cores, so they stay on one machine of a cluster.
        strategy = "PACK" if on_gpu and settings.ray_address else "STRICT_PACK"
        self._group = placement_group([{"GPU": 1} if on_gpu else {"CPU": _CPU_SHARE}] * count, strategy=strategy)
        if outcomes([self._group.ready()], WAIT_S) == [None]:
            field = "trainer.num_ranks" if train else "placement.num_rollout_engines"
            raise ConfigError([_unsatisfied(field, count, "GPU" if on_gpu else "CPU")])

    def options(self, index: int) -> dict[str, Any]:
        """Ray's options for an actor in place `index`."""
        options: dict[str, Any] = {"num_cpus": 0, "num_gpus": self._num_gpus}
        if self._group is not None:
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(self._group, index)
        return options


def _unsatisfied(field: str, count: int, resource: str) -> Mistake:
    there, free = (resources.get(resource, 0) for resources in (ray.cluster_resources(), ray.available_resources()))
    needed = f"{count} GPUs" if resource == "GPU" else f"a share of a CPU for each of {count}"
    problem = f"Ray did not give {needed} within {WAIT_S:g} s: {there:g} {resource}s are there, {free:g} free"
    return Mistake(field, count, problem, "lower it, wait for other jobs to end, or connect to a larger cluster")
