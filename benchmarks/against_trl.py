"""One workload beside TRL: measure all parts one after the other on this machine, print the ratio, write the summary.

python -m benchmarks.against_trl a
python -m benchmarks.against_trl b --parts trl --variants liger,recompute,micro=16 --trl-steps 2 --minutes 9
python -m benchmarks.against_trl a --parts step trl openrlhf # a second peer, where it is installed
python -m benchmarks.against_trl c --data DIRECTORY          # with train.jsonl and test.jsonl of GSM8K

Each part is a process of its own with a time limit; one that fails or runs out of time is recorded as such and the
rest goes on. The summary is written after each. What the parts wrote stays in the work directory, so that they may be
measured in several calls, on one machine: a summary holds all that lies there.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.machine import hardware, hardware_name, uses_gpu
from benchmarks.options import parse_options
from benchmarks.part import Part
from benchmarks.stage_plot import plot_stages
from benchmarks.summary import summarize
from benchmarks.workloads import WORKLOADS, write_problems
from deployments.steps import ROOT

RESULTS = Path(__file__).parent / "results"
PARTS = ("step", "rollout", "update", "trl")
MORE_PARTS = ("openrlhf",)
VARIANTS = ("liger,micro=8", "liger,recompute,micro=32", "recompute,micro=32", "micro=8", "liger,recompute,correction")
OPENRLHF_VARIANTS = ("liger,micro=8", "liger,recompute,micro=16", "sleep,liger,recompute,micro=32")
SETTINGS = ("", "vllm_scheduler", "sampler_logprobs", "sleep")
PLANS = ("", "deterministic", "tokens=81920,recompute,chunk=8192", "tokens=20480,recompute=0")
KEYS = (
    "ratio_to_trl",
    "ratio_to_openrlhf",
    "step_s",
    "trl_step_s",
    "trl_best",
    "rollout_tokens_per_s",
    "update_mfu",
    "update_effective_mfu",
    "push_s",
    "sleep_wake_s",
    "orchestration_share",
    "trained_tokens",
    "skipped_groups",
)


def parts(options: argparse.Namespace, model: Path, data: Path) -> Iterator[Part]:
    """The parts that were asked for, ours first."""
    common = ["--workload", options.workload, "--model", str(model), "--data", str(data)]
    work: Path = options.work
    if "step" in options.parts:
        arguments = ["benchmarks.step", *common, "--steps", str(options.our_steps), "--out", str(work / "step.json")]
        yield Part("step", [*arguments, *(f"--set={item}" for item in options.set)], work / "step.json", 600)
    # An engine that can sleep wants torch's allocator for itself, so it gets a process of its own.
    sleeping = [setting for setting in options.settings if "sleep" in parse_options(setting)]
    waking = [setting for setting in options.settings if setting not in sleeping]
    for name, settings in {"rollout": waking, "rollout sleep": sleeping}.items():
        if settings and "rollout" in options.parts:
            out = work / f"{name}.json"
            chosen = [f"--setting={setting}" for setting in settings]
            yield Part(name, ["benchmarks.rollout", *common, "--out", str(out), *chosen], out, 420)
    if "update" in options.parts:
        plans = [f"--plan={plan}" for plan in options.plans]
        arguments = ["benchmarks.update", *common[:4], "--out", str(work / "update.json"), *plans]
        yield Part("update", arguments, work / "update.json", 300)
    for peer, variants in {"trl": options.variants, "openrlhf": options.openrlhf_variants}.items():
        for variant in variants if peer in options.parts else ():
            out = work / f"{peer} {variant}.json"
            steps = ["--steps", str(options.trl_steps), "--variant", variant]
            yield Part(f"{peer} {variant}", [f"benchmarks.{peer}_step", *common, "--out", str(out), *steps], out, 420)


def summary(options: argparse.Namespace) -> dict[str, Any]:
    """Write the summary of all that lies in the work directory; returns it."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(options.work.glob("*.json"))}
    outcomes = found.pop("outcomes", {})
    result = summarize(options.workload, found, outcomes)
    name = f"{hardware_name(hardware())}-{options.workload}.json"
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / name).write_text(json.dumps(result, indent=1) + "\n")
    return result


def built_model(options: argparse.Namespace) -> Path:
    """The workload's model, built in the work directory unless the caller names one. Raises SystemExit if it fails."""
    if options.model:
        return Path(options.model).resolve()
    directory: Path = options.work / "model"
    arguments = ["benchmarks.shapes", WORKLOADS[options.workload].model, str(directory)]
    outcome = Part("model", arguments, options.work / "model.built", 300).run(time_left_s=300)
    if outcome["status"] != "ok":
        raise SystemExit(f"the model could not be built: {outcome}")
    return directory


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the parts; returns the summary."""
    ends = time.monotonic() + 60 * options.minutes
    options.work.mkdir(parents=True, exist_ok=True)
    num_words = WORKLOADS[options.workload].num_words
    data = write_problems(options.work / "data", num_words=num_words) if num_words else options.data.resolve()
    record = options.work / "outcomes.json"
    outcomes = json.loads(record.read_text()) if record.exists() else {}
    for part in parts(options, built_model(options), data):
        print(f"{part.name} ...", flush=True)
        outcomes[part.name] = part.run(time_left_s=ends - time.monotonic())
        print(f"{part.name}: {outcomes[part.name]['status']}, {outcomes[part.name]['seconds']:.0f} s", flush=True)
        record.write_text(json.dumps(outcomes, indent=1))
        summary(options)
    return summary(options)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; directories that were left out are filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", choices=sorted(WORKLOADS))
    choices = (*PARTS, *MORE_PARTS)
    parser.add_argument("--parts", nargs="*", choices=choices, default=list(PARTS), help="none: the summary alone")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), help="TRL's, see benchmarks.trl_step")
    theirs = list(OPENRLHF_VARIANTS)
    parser.add_argument("--openrlhf-variants", nargs="+", default=theirs, help="see benchmarks.openrlhf_step")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), help="see benchmarks.rollout")
    parser.add_argument("--plans", nargs="+", default=list(PLANS), help="see benchmarks.update")
    parser.add_argument("--our-steps", type=int, default=3, help="measured; two more are taken")
    parser.add_argument("--trl-steps", type=int, default=3, help="of each peer; the first one warms up")
    parser.add_argument("--minutes", type=float, default=60.0, help="no part goes on for longer")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="PATH=JSON", help="values of our own step's configuration"
    )
    parser.add_argument("--model", type=Path, help="a directory; left out, the workload's model is built")
    parser.add_argument("--data", type=Path, help="real problems: a directory with train.jsonl and test.jsonl")
    parser.add_argument("--work", type=Path, help="what the parts write")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the summary goes")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the stages")
    options = parser.parse_args(arguments)
    if not WORKLOADS[options.workload].num_words and not options.data:
        parser.error(f"workload {options.workload} samples from real problems: name their directory with --data")
    device = hardware_name(hardware()) if uses_gpu() else "cpu"
    options.work = (options.work or ROOT / ".drgrpo" / "benchmarks" / f"{device}-{options.workload}").resolve()
    return options


def main() -> None:
    """Measure, print the figures, draw."""
    options = parse()
    result = measure(options)
    for key in KEYS:
        print(f"{key:24s} {result[key]}")
    for name, seconds in (result["stages"] or {}).items():
        print(f"  {name:22s} {seconds:.3f} s, {result['stage_shares'][name]:.1%} of the step")
    for peer in ("trl", "openrlhf"):
        for name, variant in result[peer].items():
            print(f"{peer} {name:30s} {variant['step_s']} s")
    if options.plot:
        plot_stages(result, options.plot)


if __name__ == "__main__":
    main()
