"""The processes of a run: one Host, the trainer's ranks, the rollout engines. Started together, stopped together."""

import os
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

import ray
from ray.exceptions import RayActorError, RayError

from drgrpo.cluster.placement import Places
from drgrpo.cluster.process import Process, Remote, RemoteSampler
from drgrpo.cluster.runtime import engine_environment
from drgrpo.cluster.services import dead_services
from drgrpo.cluster.waiting import outcomes, results
from drgrpo.config import TrainConfig
from drgrpo.settings import Settings

ROLE_VARIABLE = "DRGRPO_ENGINE"
"""Environment variable of an engine's process that says which one it is, e.g. `trainer-1`."""

Role = Literal["rollout", "trainer", "host"]

TARGETS: dict[Role, str] = {
    "rollout": "drgrpo.rollout.engine.RolloutEngine",
    "trainer": "drgrpo.trainer.rank.TrainerRank",
    "host": "drgrpo.host.Host",
}
"""What each process holds."""

_ANSWER_S = 5.0


class Engines:
    """Handles of a run's processes; Ray is already up."""

    def __init__(
        self, config: TrainConfig, settings: Settings, model_path: Path, run_id: str, run_dir: Path, *, train: bool
    ) -> None:
        self.config, self.settings, self.model_path = config, settings, model_path
        self.on_gpu = uses_gpu(settings)
        self._places = Places(config, settings, on_gpu=self.on_gpu, train=train)
        self._processes: dict[str, Remote] = {}
        self.rollout = [
            self._spawn("rollout", n, config, model_path, on_gpu=self.on_gpu)
            for n in range(config.placement.num_rollout_engines)
        ]
        self.host = self._spawn("host", 0, config, str(model_path), run_id, str(run_dir), train=train)
        self.ranks: list[Remote] = []

    def start_trainer(self) -> None:
        """Start the ranks and join them in one process group."""
        num_ranks = self.config.trainer.num_ranks
        self.ranks = [
            self._spawn(
                "trainer",
                rank,
                self.config,
                str(self.model_path),
                rank=rank,
                world_size=num_ranks,
                on_gpu=self.on_gpu,
            )
            for rank in range(num_ranks)
        ]
        address, port = self.ranks[0].call("address")
        results([rank.start("start", address, port) for rank in self.ranks])

    def wait(self) -> None:
        """Until every engine is built; raises what went wrong in one."""
        results([engine.start("policy_version") for engine in self.rollout])

    def connect(self) -> None:
        """Give each rollout engine the rank of its place, which pushes to it."""
        samplers = [RemoteSampler(engine) for engine in self.rollout]
        padded = [*samplers, *[None] * (len(self.ranks) - len(samplers))]
        results([rank.start("connect", sampler) for rank, sampler in zip(self.ranks, padded, strict=True)])

    def lost(self) -> list[str]:
        """Names of the processes that have died, e.g. `trainer-1`; one that is busy or hangs has not."""
        answers = outcomes([remote.ping() for remote in self._processes.values()], _ANSWER_S)
        return sorted(
            name for name, answer in zip(self._processes, answers, strict=True) if answer and _is_dead(answer)
        )

    def stop(self) -> None:
        """End every process at once; what they held is on disk."""
        if "gcs_server" in dead_services():  # Ray would wait for it; without Ray the processes end by themselves
            return
        for remote in self._processes.values():
            ray.kill(remote.handle)

    def _spawn(self, role: Role, index: int, *args: Any, **kwargs: Any) -> Remote:
        name, is_host = f"{role}-{index}", role == "host"
        environment = engine_environment(self.settings, self.config, role, on_gpu=self.on_gpu and not is_host)
        actor = ray.remote(Process).options(
            **({"num_cpus": 0} if is_host else self._places.options(index)),
            runtime_env={"env_vars": {**environment, ROLE_VARIABLE: name}},
        )
        # On a cluster the flow may be on another machine, where its process id means nothing.
        owner = 0 if self.settings.ray_address else os.getpid()
        self._processes[name] = Remote(
            actor.remote(TARGETS[role], owner, self.settings.call_timeout_s, *args, **kwargs)
        )
        return self._processes[name]


def _is_dead(answer: Future[Any]) -> bool:
    error = answer.exception()
    if isinstance(error, RayActorError):
        return not error.actor_init_failed  # one that refuses to start is not lost: it would refuse again
    return isinstance(error, RayError)


def uses_gpu(settings: Settings) -> bool:
    """Whether the engines run on GPUs."""
    if settings.device != "auto":
        return settings.device == "cuda"
    return bool(ray.cluster_resources().get("GPU", 0) > 0)
