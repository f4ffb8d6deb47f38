"""The comparison: order, continuation, arms that fail, cancellation, its records; and once with nothing replaced."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun
from prefect.settings import get_current_settings

from drgrpo.config import TrainConfig
from drgrpo.config.errors import ConfigError
from drgrpo.tables import find_table, read_table
from flows.compare import ArmsMissing, compare
from flows.identity import Identity, identity

pytestmark = pytest.mark.usefixtures("prefect_server")

Options = Callable[..., dict[str, Any]]
ROOT = Path(__file__).parents[2]
ID = "22222222-2222-4333-8444-555555555555"
ARMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grpo": {"adv_norm.std_level": "group", "loss.aggregation": "sequence_mean"},
}


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: Path) -> Path:
    """Arms are processes with engines that keep the books only; what they did and are to do wrong lies here."""
    folder = tmp_path / "fakes"
    folder.mkdir()
    monkeypatch.setenv("FAKE_ARM_DIR", str(folder))
    monkeypatch.setattr("drgrpo.comparison.processes.COMMAND", [sys.executable, "-m", "tests.flows.fake_arm"])
    return folder


@pytest.fixture
def same_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call of the flow is the same comparison, as a retried flow run is."""
    monkeypatch.setattr("flows.compare.identity", lambda: Identity(**{**identity(), "run_id": ID}))


def goes_wrong(fakes: Path, label: str, call: str, how: str, *, once: bool = True) -> None:
    (fakes / f"{label}.json").write_text(json.dumps({"call": call, "how": how, "once": once}))


def calls(fakes: Path) -> list[tuple[str, str]]:
    path = fakes / "calls.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(label, call) for label, call, *_ in map(json.loads, lines)]


def starts(fakes: Path) -> list[str]:
    return [label for label, call in calls(fakes) if call == "start"]


def directory(machine: Path, run_id: str) -> Path:
    return machine / ".drgrpo" / "runs" / run_id


def query(machine: Path, sql: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(machine / ".drgrpo" / "mlflow.db") as connection:
        return connection.execute(sql).fetchall()


def shown(run_id: str) -> dict[str, Any]:
    """Newest artifact of each kind, without the comparison's id in the key."""
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(like_=f"%{run_id}")))
    ordered = sorted(found, key=lambda artifact: str(artifact.created))
    own = [artifact for artifact in ordered if str(artifact.key).endswith(run_id)]
    return {str(artifact.key).removesuffix(f"-{run_id}"): artifact for artifact in own}


def test_arms_run_seed_by_seed_and_prefect_mlflow_and_the_disk_have_all_of_it(
    fakes: Path, options: Options, machine: Path
) -> None:
    first = compare(TrainConfig(), ARMS, [3], options())
    summary = compare(TrainConfig(), ARMS, [3, 5], options(), resume_from=first["comparison"])
    run_id, parent = summary["comparison"], summary["mlflow_run_id"]
    assert starts(fakes) == ["plain-3", "grpo-3", "plain-5", "grpo-5"]
    assert (first["seeds"], summary["seeds"], summary["missing"]) == ([3], [3, 5], [])
    assert (run_id, parent) == (first["comparison"], first["mlflow_run_id"])

    of_mlflow(machine, parent)
    result = json.loads((directory(machine, run_id) / "results" / "grpo-3.json").read_text())
    assert (result["arm"], result["seed"], result["config"]["seed"]) == ("grpo", 3, 3)
    assert result["config"]["adv_norm.std_level"] == "group" and result["device_minutes"] > 0
    # 3 problems x 4 completions of 1, 2, 3 and 4 tokens, twice; an evaluation has a greedy one of 1 token beside them.
    assert result["tokens"] == {"sampled": 60, "trained": 0, "evaluated": 66}
    assert result["training"]["step"] == [0, 1] and result["evaluation"]["step"] == [0, 2]
    assert set(result["scores"]) == {"greedy", "avg_at_k"} and result["avg_at_k"] == 0.5 and "avg_at_8" not in result
    of_prefect(run_id, parent)
    with pytest.raises(ConfigError, match=r"arm plain-3: optimizer.lr = 0.5: it was started with"):
        compare(TrainConfig(), ARMS, [3], options(optimizer__lr=0.5), resume_from=run_id)
    with pytest.raises(ConfigError, match="no comparison"):
        compare(TrainConfig(), ARMS, [3], options(), resume_from="somewhere")


def flow_runs(run_id: str) -> list[FlowRun]:
    """The arms' own flow runs."""
    with get_client(sync_client=True) as client:
        chosen = FlowRunFilter(tags=FlowRunFilterTags(all_=[f"comparison:{run_id}"]))
        return client.read_flow_runs(flow_run_filter=chosen)


def of_mlflow(machine: Path, parent: str) -> None:
    """A parent and four children, all finished, in one experiment, with what they have in common and the report."""
    children = query(machine, f"select run_uuid from tags where key = 'mlflow.parentRunId' and value = '{parent}'")
    assert len(children) == 4 and query(machine, "select count(*) from runs where status = 'FINISHED'") == [(5,)]
    tags = set(query(machine, "select key, value from tags where key in ('drgrpo.arm', 'drgrpo.seed')"))
    assert tags == {("drgrpo.arm", "grpo"), ("drgrpo.arm", "plain"), ("drgrpo.seed", "3"), ("drgrpo.seed", "5")}
    assert query(machine, "select name from experiments where name like 'drgrpo%'") == [("drgrpo-compare",)]
    params = dict(query(machine, f"select key, value from params where run_uuid = '{parent}'"))
    assert params["arms.grpo.adv_norm.std_level"] == "group" and params["rollout.group_size"] == "4"
    assert "loss.aggregation" not in params
    (location,) = query(machine, f"select artifact_uri from runs where run_uuid = '{parent}'")[0]
    artifacts = Path(location.removeprefix("file://"))
    assert {path.name for path in artifacts.iterdir()} == {"report.html", "report.png", "summary.json", "results"}
    results = {path.name for path in (artifacts / "results").iterdir()}
    assert results == {"grpo-3.json", "grpo-5.json", "plain-3.json", "plain-5.json"}


def of_prefect(run_id: str, parent: str) -> None:
    """Its artifacts, and the arms' own flow runs by tag."""
    artifacts = shown(run_id)
    assert set(artifacts) == {"mlflow", "progress", "arms", "report"} and artifacts["progress"].data == 100.0
    assert "| avg@4 | grpo | 50.0 % |" in artifacts["report"].data and parent in artifacts["report"].data
    assert [row["state"] for row in json.loads(artifacts["arms"].data)] == ["done"] * 4
    arms = flow_runs(run_id)
    assert {run.name.split()[-1] for run in arms} == {"plain-3", "grpo-3", "plain-5", "grpo-5"}
    assert all(run.state and run.state.is_completed() for run in arms)


def test_two_devices_take_an_arm_each_and_one_that_is_killed_goes_on_where_its_files_end(
    fakes: Path, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drgrpo.comparison.comparison.Comparison.devices", lambda _: ["0", "1"])
    (fakes / "together.json").write_text(json.dumps(["plain-1", "grpo-1"]))  # neither goes on without the other
    goes_wrong(fakes, "grpo-1", "update-1", "kill")
    summary = compare(TrainConfig(), ARMS, [1], options())
    lines = [json.loads(line) for line in (fakes / "calls.jsonl").read_text().splitlines()]
    # The killed arm went on at once, on whatever device was free.
    assert {(label, device) for label, _, device in lines} >= {("plain-1", "0"), ("grpo-1", "1")}
    grpo = [call for label, call in calls(fakes) if label == "grpo-1"]
    assert (grpo.count("start"), grpo.count("rollout-1"), grpo.count("update-1")) == (2, 1, 2)
    assert summary["missing"] == []
    assert sorted(run.state_name for run in flow_runs(summary["comparison"])) == ["Completed", "Completed", "Crashed"]


@pytest.mark.usefixtures("same_comparison")
def test_arms_that_fail_are_named_and_a_retry_runs_what_is_missing(
    fakes: Path, options: Options, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRGRPO_MAX_RESTARTS", "1")
    goes_wrong(fakes, "plain-1", "update-1", "raise", once=False)
    goes_wrong(fakes, "grpo-1", "update-0", "refuse", once=False)
    with pytest.raises(ArmsMissing, match=r"plain-1 \(1 of 2 steps\), grpo-1 \(0 of 2 steps\)"):
        compare(TrainConfig(), ARMS, [1], options())
    # What was refused is not tried again.
    assert starts(fakes) == ["plain-1", "plain-1", "grpo-1"]
    assert "plain-1 (1 of 2 steps)" in (directory(machine, ID) / "report.html").read_text()
    assert query(machine, "select count(*) from runs where status = 'FAILED'") == [(3,)]

    for path in (fakes / "plain-1.json", fakes / "grpo-1.json", fakes / "calls.jsonl"):
        path.unlink()
    again = compare(TrainConfig(), ARMS, [1], options())
    assert again["missing"] == [] and starts(fakes) == ["plain-1", "grpo-1"]
    assert query(machine, "select count(*), min(status) from runs where status = 'FINISHED'") == [(3, "FINISHED")]
    plain = [call for label, call in calls(fakes) if label == "plain-1"]
    assert "rollout-0" not in plain and "rollout-1" not in plain


def test_every_mistake_of_every_arm_is_told_before_anything_starts(
    fakes: Path, options: Options, machine: Path
) -> None:
    arms = {
        "a": {},
        "b": {"optimizer.lr": -1, "adv_norm.std_levl": "group"},
        "C d": {"data.max_prompt_tokens": 60, "seed": 7},
    }
    with pytest.raises(ConfigError) as raised:
        compare(TrainConfig(), arms, [1, 1], options(rollout__group_sise=4))
    text = str(raised.value)
    for part in (
        "rollout.group_sise",
        "arm b: optimizer.lr = -1",
        "arm b: adv_norm.std_levl",
        "adv_norm.std_level",
        "arm C d: data.max_prompt_tokens = 60: the first arm has 64",
        "arm C d: seed = 7",
        "arms = 'C d'",
        "seeds = 1: there twice",
    ):
        assert part in text
    assert not (fakes / "calls.jsonl").exists() and not (machine / ".drgrpo" / "runs").exists()


@pytest.mark.parametrize(("how", "notice_s"), [(signal.SIGTERM, 0), (signal.SIGINT, 300), (signal.SIGKILL, 0)])
def test_the_end_of_a_comparison_is_the_end_of_its_arms(
    how: signal.Signals, notice_s: int, fakes: Path, options: Options, machine: Path
) -> None:
    goes_wrong(fakes, "plain-1", "update-1", "hang")
    code = f"""
import sys
import drgrpo.comparison.processes as processes
processes.COMMAND = [sys.executable, "-m", "tests.flows.fake_arm"]
from drgrpo.config import TrainConfig
from flows.compare import compare
compare(TrainConfig(), {ARMS!r}, [1], {options()!r})
"""
    variables = get_current_settings().to_environment_variables(exclude_unset=True)
    variables["DRGRPO_PREEMPTION_NOTICE_S"] = str(notice_s)  # which Ctrl-C does not wait for
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **variables})
    try:
        wait_until(lambda: process.poll() is not None or ("plain-1", "update-1") in calls(fakes), 120)
        arms = psutil.Process(process.pid).children(recursive=True)
        assert arms
        process.send_signal(how)
        assert process.wait(30) != 0
        _, alive = psutil.wait_procs(arms, timeout=10)
        assert alive == []
    finally:
        process.kill()
    if how != signal.SIGKILL:
        assert query(machine, "select count(*) from runs where status = 'KILLED'") == [(2,)]


@pytest.mark.engine
def test_two_arms_with_real_engines_side_by_side_see_the_same_problems_and_differ_in_the_update_alone(
    machine: Path, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drgrpo.comparison.comparison.Comparison.devices", lambda _: ["0", "1"])
    overrides = options(
        total_steps=2,
        reward__functions={"tests.flows.rewards:parity": 1.0},
        reward__truncated_reward="keep",
        optimizer__lr=1e-2,
        checkpoint__export=False,
    )
    summary = compare(TrainConfig(), ARMS, [1], overrides)
    first, second = (directory(machine, f"{summary['comparison']}-{arm}-1") for arm in ARMS)
    columns = ["problem_id", "group_id", "sample_index", "seed", "prompt"]
    for step in (0, 1):
        tables = [read(path / "steps" / f"{step:06d}" / "advantage.parquet") for path in (first, second)]
        assert tables[0].select(columns).equals(tables[1].select(columns))
        # From the same policy the same tokens; after one update by another rule the policies differ.
        same_tokens = tables[0]["completion_ids"].equals(tables[1]["completion_ids"])
        assert same_tokens == (step == 0)
        assert not tables[0]["advantage"].equals(tables[1]["advantage"])
    evaluations = [read(path / "evaluations" / "000000.parquet") for path in (first, second)]
    assert evaluations[0]["completion_ids"].equals(evaluations[1]["completion_ids"])
    assert {row["score"] for row in summary["table"]} == {"greedy pass@1", "avg@4"}
    page = Path(summary["report"]).read_text()
    assert re.findall(r"https?://", page) == [] and page.count("data:image/png;base64,") == 3
    assert "One seed each" in page


def read(path: Path) -> Any:
    ref = find_table(path)
    assert ref is not None
    return read_table(ref)


def wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.2)
