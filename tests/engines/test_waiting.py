"""Waiting for the real Ray and leaving it: signals, failures and deaths act at once, whatever else goes on."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]
SCRIPT = """
import os, signal, sys, threading, time
import ray
from drgrpo.cluster.waiting import outcomes, result, results

class Terminated(BaseException):
    pass

def terminate(*_):
    raise Terminated

os.environ["RAY_AUTH_TOKEN"] = "a" * 64  # else Ray writes one to the home
ray.init(include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1", _temp_dir=sys.argv[1])
signal.signal(signal.SIGTERM, terminate)

@ray.remote(num_cpus=0)
class Worker:
    def work(self, seconds):
        time.sleep(seconds)
        return seconds
    def fail(self):
        raise KeyError("on purpose")

first, second = Worker.remote(), Worker.remote()
assert result(first.work.remote(0)) == 0
assert results([second.work.remote(0.2), first.work.remote(0.1)]) == [0.2, 0.1]
for wait in (result, lambda reference: results([reference]), lambda reference: outcomes([reference], 60)):
    busy = Worker.remote()
    result(busy.work.remote(0))
    started = time.monotonic()
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    try:
        wait(busy.work.remote(60))
        raise AssertionError("the signal was lost")
    except Terminated:
        assert 1 <= time.monotonic() - started < 20
    ray.kill(busy)
started = time.monotonic()
hanging = first.work.remote(60)
try:
    results([hanging, second.fail.remote()])
    raise AssertionError("nothing was raised")
except KeyError:
    pass
done, late = outcomes([second.work.remote(0), hanging], 1)
assert done.result() == 0 and late is None and time.monotonic() - started < 30
ray.kill(first)
try:
    result(hanging)
    raise AssertionError("nothing was raised")
except ray.exceptions.RayActorError:
    print("whole")
ray.shutdown()
"""


SERVICES = """
import os, sys, time
import psutil, ray
from ray.exceptions import RaySystemError
from drgrpo.cluster.services import dead_services, forget_services, watch_services
from drgrpo.cluster.waiting import result

os.environ["RAY_AUTH_TOKEN"] = "a" * 64
for victim in ("gcs_server", "raylet"):
    ray.init(include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1", _temp_dir=sys.argv[1])
    watch_services()

    @ray.remote(num_cpus=0)
    class Worker:
        def work(self, seconds):
            time.sleep(seconds)

    worker = Worker.remote()
    assert result(worker.work.remote(1.5)) is None and dead_services() == []
    (service,) = [child for child in psutil.Process().children() if child.name() == victim]
    service.kill()
    started = time.monotonic()
    try:
        result(worker.work.remote(30))
        raise AssertionError("nothing was raised")
    except RaySystemError as error:
        assert victim in str(error) and time.monotonic() - started < 10, error  # of itself Ray takes 15
    assert dead_services() == [victim]
    forget_services()
    ray.shutdown()
    assert time.monotonic() - started < 30 and dead_services() == []
print("both")
"""


REFERENCES = """
import os, sys, threading, time
import ray
from drgrpo.cluster.runtime import stop_ray

os.environ["RAY_AUTH_TOKEN"] = "a" * 64

@ray.remote(num_cpus=0)
class Worker:
    def one(self):
        return 1

for _ in range(2):
    ray.init(include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1", _temp_dir=sys.argv[1])
    worker = Worker.remote()
    references = [worker.one.remote() for _ in range(3000)]
    assert sum(ray.get(references)) == 3000
    def let_go():
        while references:
            references.pop()
            time.sleep(0.0005)
    thread = threading.Thread(target=let_go)
    thread.start()
    stop_ray()
    assert references and not ray.is_initialized()
    thread.join()
print("survived")
"""


WORKERS = """
import os, subprocess, sys
import psutil, ray
from drgrpo.cluster.runtime import stop_ray
from drgrpo.cluster.services import watch_services

os.environ["RAY_AUTH_TOKEN"] = "a" * 64
ray.init(include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1", _temp_dir=sys.argv[1])
watch_services()

@ray.remote(num_cpus=0)
class Worker:
    def raylet(self):
        return os.environ["RAY_RAYLET_PID"]

(raylet,) = [child for child in psutil.Process().children() if child.name() == "raylet"]
assert ray.get(Worker.remote().raylet.remote()) == str(raylet.pid)
# As a worker that waits a minute for `gcs_server` does, this does not end with the raylet.
waits = subprocess.Popen(["sleep", "600"], env={"RAY_RAYLET_PID": str(raylet.pid)})
another = subprocess.Popen(["sleep", "600"], env={"RAY_RAYLET_PID": str(raylet.pid + 1)})
stop_ray()
ended = not psutil.pid_exists(waits.pid), another.poll() is not None
for process in (waits, another):
    process.kill()
assert ended == (True, False), ended
print("ended")
"""


def test_a_worker_that_outlives_ray_is_ended(tmp_path_factory: pytest.TempPathFactory) -> None:
    assert run(WORKERS, tmp_path_factory).splitlines()[-1] == "ended"


def test_a_thread_that_lets_go_of_references_while_ray_is_left_does_not_end_the_process(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    assert run(REFERENCES, tmp_path_factory).splitlines()[-1] == "survived"


def test_the_death_of_a_service_of_rays_is_told_at_once_and_ray_can_be_left(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    assert run(SERVICES, tmp_path_factory).splitlines()[-1] == "both"  # Ray prints before it


def test_a_signal_and_a_failure_act_while_something_else_goes_on(tmp_path_factory: pytest.TempPathFactory) -> None:
    assert run(SCRIPT, tmp_path_factory) == "whole\n"


def run(script: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What it prints; its argument is a directory for Ray."""
    folder = tmp_path_factory.mktemp("r")  # a socket's path has 107 bytes at most
    command = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
