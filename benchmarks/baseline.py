"""The baseline on GSM8K from nothing, in one command: warm start, then every arm with every seed, and the report.

python -m benchmarks.baseline --data DIRECTORY --work DIRECTORY --out DIRECTORY
python -m benchmarks.baseline ... --seeds 1 --arms dr-grpo grpo rloo --set total_steps=20 --set-warm-start total_steps=9

The directory of `--data` has GSM8K's train.jsonl and test.jsonl. It runs the flows of the deployments
`drgrpo-sft/gsm8k` and `drgrpo-compare/gsm8k-smollm2` with their values. Started again with the same `--work`, it goes
on where it ended.
"""

import argparse
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_origin

import yaml

from benchmarks.services import local_services
from deployments.steps import ROOT, load_deployment
from drgrpo.comparison.hardware import hardware
from drgrpo.comparison.outcome import arm_result
from drgrpo.comparison.plan import ArmRun
from drgrpo.comparison.results import write_result
from drgrpo.config.overrides import apply_overrides, config_digest
from drgrpo.config.paths import FIELDS
from drgrpo.description import read_description
from drgrpo.device_lock import visible_devices
from drgrpo.settings import load_settings

DEPLOYMENT = "gsm8k-smollm2"
_WARM_START = "warm-start.json"
ABLATIONS: dict[str, dict[str, Any]] = {
    "no-std": {"loss.aggregation": "sequence_mean"},
    "no-length": {"adv_norm.std_level": "group"},
    "rloo": {"adv_norm.leave_one_out": True},
    "one-update": {"trainer.completions_per_update": 1024},
    "corrected": {"loss.correction": "token_tis", "rollout.sampler_logprobs": True},
}
"""Arms beside those of the deployment, as changes of Dr. GRPO."""


def assigned(pairs: Sequence[str]) -> dict[str, Any]:
    """`path=JSON` as overrides."""
    return {path: json.loads(value) for path, value in (pair.split("=", 1) for pair in pairs)}


def deployed() -> dict[str, Any]:
    """The parameters of the comparison's deployment in prefect.yaml."""
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    found = (d for d in deployments if d["entrypoint"].startswith("flows.compare") and d["name"] == DEPLOYMENT)
    parameters: dict[str, Any] = next(found)["parameters"]
    return parameters


def warm_start(work: Path, overrides: dict[str, Any]) -> Path:
    """The policy that imitates GSM8K's solutions; trained unless it is there."""
    from flows.sft import sft

    note = work / _WARM_START
    if not note.exists():
        started = time.monotonic()
        summary = sft(load_deployment("gsm8k-sft"), overrides)
        note.write_text(json.dumps({**summary, "seconds": time.monotonic() - started}, indent=1))
    return work / ".drgrpo" / "runs" / json.loads(note.read_text())["run_id"] / "policy"


def warm_start_result(work: Path) -> dict[str, Any]:
    """The warm start's result in the form of an arm's; its minutes are those of the process that ended it."""
    settings, note = load_settings(), json.loads((work / _WARM_START).read_text())
    directory = work / ".drgrpo" / "runs" / note["run_id"]
    description = read_description(directory)
    if description is None:
        raise FileNotFoundError(f"{directory}: the warm start that {work / _WARM_START} names is not there")
    config = description.config
    device = "" if settings.device == "cpu" else ",".join(visible_devices()[: config.trainer.num_ranks])
    seconds = note["seconds"] / (settings.runs_per_gpu if device else 1)
    run = ArmRun("warm-start", config.seed, {}, config, note["run_id"])
    return arm_result(run, directory, device_seconds=seconds, hardware=hardware(device))


def run_arms(work: Path, policy: Path, options: argparse.Namespace, overrides: dict[str, Any]) -> dict[str, Any]:
    """Every arm with every seed; those that are finished already are not run again."""
    from flows.compare import compare

    parameters = deployed()
    known = {**parameters["arms"], **ABLATIONS}
    begun = sorted((work / ".drgrpo" / "runs").glob("*/comparison.json"), key=lambda path: path.stat().st_mtime)
    return compare(
        load_deployment(DEPLOYMENT),
        {name: known[name] for name in options.arms or parameters["arms"]},
        options.seeds or parameters["seeds"],
        {**parameters["overrides"], **overrides, "model.path": str(policy)},
        begun[-1].parent.name if begun else "",
    )


def published(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result with names in place of this machine's paths, and the digest of the configuration that it then shows.

    So whoever repeats a run elsewhere gets the same digest.
    """
    found = result["config"]
    names = {path: Path(found[path]).name for path in ("data.train", "data.eval")}
    if (model := Path(found["model.path"])).is_absolute():
        names["model.path"] = model.name if result["arm"] == "warm-start" else "warm-start"
    config = {**found, **names}
    lists = {path: json.loads(config[path]) for path, info in FIELDS.items() if get_origin(info.annotation) is list}
    nothing = {"reward": {"functions": {}}}  # else the default reward would be added to those that are shown
    digest = config_digest(apply_overrides(nothing, {**config, **lists}))
    return {**result, "config": config, "config_digest": digest}


def keep(work: Path, out: Path) -> None:
    """Publish the results and copy the report of the comparison."""
    for report in (work / ".drgrpo" / "runs").glob("*/report.html"):
        out.mkdir(parents=True, exist_ok=True)
        for path in report, report.with_suffix(".png"):
            shutil.copy(path, out / path.name)
        for path in report.parent.glob("results/*.json"):
            write_result(out / path.name, published(json.loads(path.read_text())))


def main() -> None:
    """Train, compare, and copy what is to be kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="runs, stores, services' state")
    parser.add_argument("--out", type=Path, required=True, help="a JSON for each arm and seed, and the report")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--arms", nargs="+", help="of the deployment, and " + ", ".join(ABLATIONS))
    parser.add_argument("--set", nargs="+", default=[], metavar="PATH=JSON", help="overrides of all arms")
    parser.add_argument("--set-warm-start", nargs="+", default=[], metavar="PATH=JSON")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    data = {"data.train": str(options.data.resolve()), "data.eval": str(options.data.resolve())}
    with local_services(work):
        policy = warm_start(work, {**data, "model.path": options.model, **assigned(options.set_warm_start)})
        write_result(options.out / "warm-start" / _WARM_START, published(warm_start_result(work)))
        try:
            run_arms(work, policy, options, {**data, **assigned(options.set)})
        finally:
            keep(work, options.out)


if __name__ == "__main__":
    main()
