"""kill -9 while the engines start: the flow is told of a lost engine, and nothing stays in shared memory."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drgrpo.cluster.cluster import Cluster, EngineLost
from drgrpo.config.overrides import load_config
from drgrpo.leftovers import SHARED_MEMORY, orphans
from drgrpo.settings import load_settings
from tests.faults.victims import find, kill, left_behind
from tests.flows.test_deployments import free_port

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]
Options = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("victim", "told"),
    [
        ("trainer-1", "trainer-1 died"),
        ("gcs_server", "gcs_server died"),
        pytest.param("raylet", "raylet died", marks=pytest.mark.long),
    ],
)
def test_what_is_killed_while_the_engines_start_is_a_lost_engine(
    machine: Path, options: Options, victim: str, told: str
) -> None:
    killed: list[int | None] = []
    run_dir = machine / "run"
    run_dir.mkdir()

    def blow() -> None:
        while find(machine, "trainer-1") is None:
            time.sleep(0.1)
        killed.append(kill(machine, victim))  # the rank is there, and seconds from being ready

    threading.Thread(target=blow, daemon=True).start()
    config = load_config({}, options(trainer__num_ranks=2))
    with pytest.raises(EngineLost, match=told):
        Cluster(
            config,
            load_settings(),
            model_path=Path(config.model.path),
            run_id="start-up",
            run_dir=run_dir,
            train=True,
        )
    assert len(killed) == 1 and killed[0] is not None
    assert left_behind(machine) == []
    assert list((run_dir / "logs").glob("worker-*"))


RANK = """
import os, signal, sys
import torch, torch.distributed as dist
from drgrpo.trainer.zero import init_process_group
rank, port, dies = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "dies"
barrier = dist.barrier
def blow():
    print("mapped", flush=True)
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    barrier()
dist.barrier = blow
init_process_group(rank, 2, "127.0.0.1", port, torch.device("cpu"))
print("joined", flush=True)
"""


def buffers(port: int) -> list[str]:
    return sorted(path.name for path in SHARED_MEMORY.glob(f"deepspeed_allreduce_buffer_*_{port}_*"))


def test_a_rank_that_is_killed_while_the_ranks_join_leaves_no_buffer_once_a_run_starts_again() -> None:
    port = free_port()
    command, environment = [sys.executable, "-c", RANK], {**os.environ, "DS_ACCELERATOR": "cpu"}
    ranks = [
        subprocess.Popen([*command, str(rank), str(port), word], cwd=ROOT, env=environment, stdout=subprocess.PIPE)
        for rank, word in enumerate(["stays", "dies"])
    ]
    try:
        said = [rank.communicate(timeout=400)[0].split() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert ranks[1].returncode == -signal.SIGKILL and ranks[0].returncode == 1
    assert said[1][-1:] == [b"mapped"] and b"joined" not in said[0] + said[1]
    (left,) = buffers(port)  # rank 0 has removed its own
    assert left == f"deepspeed_allreduce_buffer_{os.getuid()}_drgrpo-{ranks[0].pid}_{port}_1"
    for path in orphans():
        path.unlink(missing_ok=True)
    assert buffers(port) == []
