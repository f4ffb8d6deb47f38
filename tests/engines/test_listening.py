"""Where the processes of a run listen: on loopback, and Ray not without its token."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.engines.comparison import SAMPLES, Trainers
from tests.engines.conftest import make_config
from tests.engines.process import EngineProcess
from tests.engines.sampling import generate, sample_requests

pytestmark = pytest.mark.engine


def listening(pid: int) -> list[str]:
    """Addresses on which the process and all below it listen."""
    this = psutil.Process(pid)
    sockets = (found for process in [this, *this.children(recursive=True)] for found in process.net_connections("inet"))
    return [found.laddr.ip.removeprefix("::ffff:") for found in sockets if found.status == psutil.CONN_LISTEN]


def test_the_trainers_ranks_listen_on_loopback(trainers: Trainers, tiny_model: Path) -> None:
    ranks = trainers(2)
    ranks.call("update", make_config(tiny_model), [SAMPLES])
    addresses = [address for process in ranks.processes for address in listening(process.pid or 0)]
    assert addresses and set(addresses) == {"127.0.0.1"}


def test_the_sampler_listens_on_loopback(sampler: EngineProcess) -> None:
    generate(sampler, sample_requests()[:1])
    assert set(listening(sampler.pid or 0)) <= {"127.0.0.1"}


_VISITOR = """
import sys
from ray._raylet import GcsClient
try:
    print("in", len(GcsClient(sys.argv[1]).get_all_node_info(timeout=10)))
except Exception as error:
    print("out", error)
"""

_RUN = f"""
import os, subprocess, sys
import ray
from pathlib import Path
from drgrpo.cluster.process import Process
from drgrpo.cluster.runtime import start_ray, stop_ray
from drgrpo.settings import Settings
from tests.engines.test_listening import listening
start_ray(Settings(device="cpu"), Path(sys.argv[1]))
actor = ray.remote(Process).options(num_cpus=0).remote("collections.Counter", 0, 60.0)
ray.get(actor.ping.remote())
print("addresses", *sorted(set(listening(os.getpid()))))
address = ray.get_runtime_context().gcs_address
others = {{name: value for name, value in os.environ.items() if not name.startswith("RAY_")}}
for token in ("0" * 64, os.environ["RAY_AUTH_TOKEN"]):
    environment = {{**others, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}}
    subprocess.run([sys.executable, "-c", {_VISITOR!r}, address], env=environment, timeout=120)
stop_ray()
"""


def test_an_embedded_ray_listens_on_loopback_and_only_to_those_who_have_its_token(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(tmp_path / "logs")],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    told = [line for line in done.stdout.splitlines() if line.startswith(("addresses", "in", "out"))]
    assert told[0] == "addresses 127.0.0.1"
    assert [line.split()[0] for line in told[1:]] == ["out", "in"] and "InvalidAuthToken" in told[1]
    assert not (tmp_path / ".ray" / "auth_token").exists()
