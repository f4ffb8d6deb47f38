"""A collective that one rank never enters: every rank prints its stacks, whichever is the first, and ends."""

import socket
import time
from pathlib import Path

import pytest
import ray
from ray.exceptions import RayActorError

from drgrpo.cluster.process import Process, Remote
from drgrpo.cluster.runtime import start_ray, stop_ray
from drgrpo.settings import Settings

pytestmark = pytest.mark.engine

LIMIT_S = 45.0


def test_every_rank_of_a_hung_collective_prints_its_stacks_and_ends(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start_ray(Settings(), tmp_path / "logs")
    try:
        actor = ray.remote(Process).options(num_cpus=0)
        ranks = [Remote(actor.remote("tests.faults.hanging.Hanging", 0, LIMIT_S, rank, port)) for rank in range(2)]
        ray.get([rank.ping() for rank in ranks])  # so that both calls begin at once
        started = time.monotonic()
        calls = [rank.start("meet") for rank in ranks]
        for call in calls:
            with pytest.raises(RayActorError):
                ray.get(call, timeout=240)
        assert time.monotonic() - started > LIMIT_S
    finally:
        stop_ray()
    logs = [path.read_text(errors="replace") for path in (tmp_path / "logs").glob("worker-*.err")]
    dumps = [text.partition("Timeout (0:00:45)!")[2] for text in logs if "Timeout (0:00:45)!" in text]
    where = sorted("sleeps" if "in sleep_instead_of_meeting" in text else "meets" for text in dumps)
    assert where == ["meets", "sleeps"]
    assert all(("in all_reduce" in text) != ("in sleep_instead_of_meeting" in text) for text in dumps)
    assert all("hanging.py" in text and "in meet" in text for text in dumps)  # the whole of the main thread's stack
