"""kill -9 of each process of a run, at a stage of each step: the run ends with the same weights as an undisturbed one.

`make soak` does the same at random moments (`python -m tests.faults.soak`).
"""

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.disturbed import Ended, check_same, run_to_the_end
from tests.faults.victims import kill, kill_grader_at_work, left_behind, listening, shared_memory, taken

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800), pytest.mark.usefixtures("server_address")]

Options = Callable[..., dict[str, Any]]

# The engines run ahead of the flow: what is killed may have done its work for the step, and its death is found in the
# next. So a step lies between two deaths that the same process of the flow has to find.
PLAN = {
    ("update", 0): "trainer-1",
    ("rollout", 2): "rollout-0",
    ("reward", 3): "grader",
    ("sync", 5): "host-0",
    ("update", 7): "flow",
    ("evaluate", 8): "raylet",
}
"""(stage, policy version) to what is killed when it begins."""


@pytest.fixture(scope="module")
def overrides(options: Options) -> dict[str, Any]:
    return options(
        total_steps=8,
        optimizer__lr=1e-3,
        trainer__num_ranks=2,
        reward__functions={"tests.flows.rewards:slow_parity": 1.0},
        reward__truncated_reward="keep",
        evaluation__num_problems=4,
        checkpoint__every_steps=2,
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, overrides: dict[str, Any]) -> Ended:
    return run_to_the_end(tmp_path_factory.mktemp("undisturbed"), overrides, lambda stage, version: None)


def test_six_kills_leave_the_weights_and_samples_of_an_undisturbed_run(
    tmp_path: Path, overrides: dict[str, Any], undisturbed: Ended
) -> None:
    to_come, killed, ports = dict(PLAN), list[int | None](), set[int]()
    in_memory = shared_memory()

    def blow(stage: str, version: int) -> None:
        if victim := to_come.pop((stage, version), None):
            ports.update(listening(tmp_path))
            if victim == "grader":
                grader.start()
            else:
                assert kill(tmp_path, victim) is not None, f"no {victim} at {stage} {version}"

    grader = threading.Thread(target=lambda: killed.append(kill_grader_at_work(tmp_path)))
    run = run_to_the_end(tmp_path, overrides, blow)
    assert to_come == {}
    assert len(killed) == 1 and killed[0] is not None  # while it graded
    assert run.num_processes == 2  # the flow died once; all other deaths it outlived
    # All but the grader's worker, which its pool replaces, cost a start; the last one came in the midst of evaluation.
    assert run.stages.count(("start", 0)) == 1 + 5
    assert run.stages.count(("evaluate", 8)) >= 2  # Prefect may try the task again before the engines are started
    check_same(run, undisturbed)
    assert left_behind(tmp_path) == []
    assert shared_memory() <= in_memory
    assert len(ports) > 6 and taken(ports) == set()
    pids = [path.name.split("-")[2] for path in Path(tempfile.gettempdir()).glob("drgrpo-ray-*-*")]
    assert [pid for pid in pids if not Path(f"/proc/{pid}").exists()] == []


@pytest.mark.long
@pytest.mark.parametrize("victim", ["gcs_server"])
def test_the_death_of_rays_store_of_names_does_no_harm(
    tmp_path: Path, overrides: dict[str, Any], undisturbed: Ended, victim: str
) -> None:
    to_come = [victim]

    def blow(stage: str, version: int) -> None:
        if to_come and (stage, version) == ("reward", 1):
            assert kill(tmp_path, to_come.pop()) is not None

    run = run_to_the_end(tmp_path, overrides, blow)
    assert to_come == []
    check_same(run, undisturbed)
    assert left_behind(tmp_path) == []
