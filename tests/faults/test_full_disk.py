"""The disk is full while a table or checkpoint is written: the run fails, and goes on once there is room."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drgrpo.config import TrainConfig
from drgrpo.tables import find_table
from flows.train import train
from tests.flows.fake_cluster import FakeCluster, Script
from tests.flows.test_train import uninterrupted_policy

pytestmark = pytest.mark.usefixtures("prefect_server")

Options = Callable[..., dict[str, Any]]


@pytest.fixture
def small_disk(machine: Path) -> Iterator[Path]:
    """A file system of 1 GiB for the runs."""
    runs = machine / ".drgrpo" / "runs"
    runs.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(runs)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted")
    yield runs
    subprocess.run(["umount", "--lazy", str(runs)], check=True)


def fill(folder: Path) -> None:
    """Use all that is left."""
    with (folder / "filler").open("wb") as file:
        left = os.statvfs(folder)
        os.posix_fallocate(file.fileno(), 0, left.f_bavail * left.f_bsize)


@pytest.mark.parametrize("stage", ["rollout", pytest.param("save_checkpoint", marks=pytest.mark.long)])
def test_a_full_disk_fails_the_run_and_room_lets_it_go_on(
    small_disk: Path, options: Options, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    script, method = Script(), getattr(FakeCluster, stage)
    monkeypatch.setattr("drgrpo.opening.Cluster", script.start)

    def filling(cluster: FakeCluster, *args: Any) -> Any:
        if cluster.pushed[0] == 2:
            fill(small_disk)
        return method(cluster, *args)

    overrides = options(total_steps=4, checkpoint__every_steps=1)
    with monkeypatch.context() as full:
        full.setattr(FakeCluster, stage, filling)
        with pytest.raises(OSError, match="No space left on device"):
            train(TrainConfig(), overrides)
    (run_id,) = [path.name for path in small_disk.iterdir() if path.is_dir()]
    directory = small_disk / run_id
    assert find_table(directory / "steps" / "000001" / "advantage.parquet") is not None
    assert find_table(directory / "steps" / "000002" / "rollout.parquet") is None
    (small_disk / "filler").unlink()
    script.calls.clear()
    train(TrainConfig(), overrides, run_id)
    sampled = [call for call in script.calls if call.startswith("rollout")]
    assert sampled == ["rollout-2", "rollout-3"]
    assert script.clusters[-1].policy == uninterrupted_policy(directory)
