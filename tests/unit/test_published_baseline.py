"""What a baseline publishes names no path of the machine, and its digest is that of what it shows."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.baseline import ABLATIONS, DEPLOYMENT, assigned, deployed, published, warm_start_result
from benchmarks.baseline_page import RESULTS
from deployments.steps import ROOT, load_deployment
from drgrpo.config import TrainConfig
from drgrpo.config.overrides import apply_overrides, config_digest, flatten, load_config
from drgrpo.description import Description, write_description
from drgrpo.tables import write_table
from tests.unit.comparison_result import result
from tests.unit.test_metrics import BEFORE


def found_at(home: str) -> dict[str, object]:
    """The result of a run on a machine with everything below `home`."""
    places = {"model.path": f"{home}/runs/4711/policy", "data.train": f"{home}/gsm8k", "data.eval": f"{home}/gsm8k"}
    config = apply_overrides(TrainConfig(), places | {"rollout.stop": ["\n\n"], "optimizer.lr": 5e-6})
    return result("grpo", 1, 0.0, config=flatten(config), config_digest=config_digest(config))


def test_a_published_result_has_names_for_paths_and_the_digest_of_what_it_shows() -> None:
    here, there = published(found_at("/home/ada")), published(found_at("/scratch/1"))
    assert here == there and "/home" not in str(here)
    shown = {"model.path": "warm-start", "data.train": "gsm8k", "data.eval": "gsm8k"}
    assert here["config"] == found_at("/home/ada")["config"] | shown
    wanted = apply_overrides(TrainConfig(), shown | {"rollout.stop": ["\n\n"], "optimizer.lr": 5e-6})
    assert here["config_digest"] == config_digest(wanted)
    assert here["scores"] == found_at("/home/ada")["scores"]


def test_the_digest_is_that_of_other_rewards_and_of_a_template_that_looks_like_a_list() -> None:
    shown = {
        "model.path": "smollm2",
        "data.train": "sums",
        "data.eval": "sums",
        "data.prompt_template": "[INST] {question}",
    }
    config = load_config({"reward": {"functions": {"math": 1.0}}}, shown)
    digest = published(result("grpo", 1, 0.0, config=flatten(config), config_digest=""))["config_digest"]
    assert digest == config_digest(config)


def test_a_warm_start_has_a_result_like_an_arms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRGRPO_DEVICE", "cpu")
    values = {"total_steps": 2, "data.train": "/data/sums", "data.eval": "/data/sums", "model.path": "smollm2"}
    config = apply_overrides(TrainConfig(), values | {"evaluation.samples_per_problem": 2})
    run = tmp_path / ".drgrpo" / "runs" / "4711"
    write_table(run / "evaluations" / "000002.parquet", BEFORE.to_pydict())
    write_description(run, Description(config, "mlflow"))
    (run / "evaluations.jsonl").write_text('{"step": 2, "evaluation/greedy": 0.25}\n')
    history = ({"step": step, "update/nll": 1.5 - step, "update/trained_tokens": 40.0} for step in range(2))
    (run / "history.jsonl").write_text("".join(json.dumps(record) + "\n" for record in history))
    (tmp_path / "warm-start.json").write_text('{"run_id": "4711", "seconds": 90.0}')
    found = published(warm_start_result(tmp_path))
    assert (found["arm"], found["steps"], found["device_minutes"]) == ("warm-start", 2, 1.5)
    # Three problems: greedy one of three right, sampled three of six.
    assert (found["greedy_pass1"], found["avg_at_k"]) == (pytest.approx(1 / 3), 0.5)
    assert found["training"]["nll"] == [1.5, 0.5] and found["tokens"]["trained"] == 80
    assert (found["config"]["model.path"], found["config"]["data.train"]) == ("smollm2", "sums")


PUBLISHED = [path for task in ("gsm8k", "arithmetic", "ablations") for path in sorted((RESULTS / task).glob("*.json"))]


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_deployments_with_what_the_page_sets_are_those_of_the_published_baseline(path: Path) -> None:
    found, parameters = json.loads(path.read_text()), deployed()
    page = (ROOT / "docs" / "baseline.md").read_text()
    sums, arms = (re.findall(rf"^    {name}='(.*)'$", page, flags=re.MULTILINE)[0].split() for name in ("sums", "arms"))
    gsm8k = path.parent.name == "gsm8k"
    data = "gsm8k" if gsm8k else "arithmetic"
    names = {"model.path": "warm-start", "data.train": data, "data.eval": data, "seed": found["seed"]}
    given = {"checkpoint.every_minutes": 0} if gsm8k else assigned([*sums, *arms])
    arm = {**parameters["arms"], **ABLATIONS}[found["arm"]]
    again = flatten(apply_overrides(load_deployment(DEPLOYMENT), parameters["overrides"] | given | arm | names))
    assert {field: again[field] for field in found["config"]} == found["config"]
    assert found["steps"] == found["config"]["total_steps"]
    assert found["num_problems"] == (1319 if gsm8k else 1024)
