"""Rank i and rollout engine i share device i, by Ray's books of GPUs that are not there."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.engine


def placed(kind: str, directory: Path) -> dict[str, Any]:
    """What `tests.engines.placed` found in a process of its own."""
    others = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "DRGRPO_", "CUDA_VISIBLE"))}
    command = [sys.executable, "-m", "tests.engines.placed", kind, str(directory)]
    environment = {**others, "HOME": str(directory)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Runs in an embedded Ray of two GPUs."""
    return placed("embedded", tmp_path_factory.mktemp("embedded"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Runs on a Ray cluster of two nodes with a GPU each."""
    return placed("cluster", tmp_path_factory.mktemp("cluster"))


def test_a_rank_and_its_engine_see_one_device_and_the_next_pair_another(embedded: dict[str, Any]) -> None:
    found = embedded["pairs"]
    assert [devices for _, devices in found["trainer"]] == [devices for _, devices in found["rollout"]]
    assert sorted(devices for _, devices in found["trainer"]) == ["0", "1"]
    assert found["groups"] == [["STRICT_PACK", 2]]


def test_the_host_sees_no_device(embedded: dict[str, Any], cluster: dict[str, Any]) -> None:
    assert [found["pairs"]["host"][0][1] for found in (embedded, cluster)] == ["", ""]


def test_on_a_cluster_a_rank_and_its_engine_are_on_one_node(cluster: dict[str, Any]) -> None:
    found = cluster["pairs"]
    assert found["trainer"] == found["rollout"]
    assert len({node for node, _ in found["trainer"]}) == 2 and {devices for _, devices in found["trainer"]} == {"0"}
    assert found["groups"] == [["PACK", 2]]


def test_without_a_trainer_the_devices_of_the_ranks_are_left_to_others(cluster: dict[str, Any]) -> None:
    found = cluster["evaluation"]
    assert (found["trainer"], found["rollout"][0][1], found["groups"]) == ([], "0", [["PACK", 1]])


def test_on_cpus_of_a_cluster_ranks_and_engines_are_on_one_node_and_see_no_device(cluster: dict[str, Any]) -> None:
    found = cluster["on CPU"]
    places = {tuple(place) for place in (*found["trainer"], *found["rollout"])}
    assert len(found["trainer"]) == 3 and len(found["rollout"]) == 2
    assert len(places) == 1 and {devices for _, devices in places} == {""}


@pytest.mark.parametrize("kind", ["embedded", "cluster"])
def test_more_ranks_than_devices_are_refused_in_bounded_time(kind: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(kind)["too many"]
    text = "trainer.num_ranks = 3: Ray did not give 3 GPUs within 3 s: 2 GPUs are there, 2 free; lower it"
    assert text in found["refused"] and 3 <= found["seconds"] < 60


def test_a_run_leaves_no_placement_group_on_the_cluster(cluster: dict[str, Any]) -> None:
    assert cluster["left"] == ["REMOVED"] * 4


def test_after_a_push_the_worst_sampler_counts(embedded: dict[str, Any]) -> None:
    # Engine 0 is off by 0, 0, 0.75 and engine 1 by 0.5 everywhere.
    assert embedded["pairs"]["push"] == {"sync/mean_abs_logprob_diff": 0.5, "sync/max_abs_logprob_diff": 0.75}
