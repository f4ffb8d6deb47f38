"""The benchmarks' harness on a CPU: what they count and compare is right. No test looks at a time."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from benchmarks.baseline import ABLATIONS, deployed
from benchmarks.given_lengths import with_limits
from benchmarks.host import completions
from benchmarks.machine import hardware, hardware_name
from benchmarks.options import parse_options
from benchmarks.part import SHORTEST_S, Part
from benchmarks.stage_plot import plot_stages, stage_bars
from benchmarks.step import medians, overridden
from benchmarks.summary import own_stages, peer, summarize
from benchmarks.timeline import Call, account, busy_seconds
from benchmarks.workloads import WORKLOADS, write_problems
from deployments.steps import load_deployment
from drgrpo.config.overrides import config_digest, load_config

ROOT = Path(__file__).parents[2]
HAS_TRL = importlib.util.find_spec("trl") is not None

pytestmark = pytest.mark.timeout(1200)  # five engines, one after the other, on a machine that may be busy

# Of the miniature: 4 prompts x (4 + 8 + 12 + 16) tokens, 16 completions, 8 to an optimizer step.
TRAINED_TOKENS = 4 * (4 + 8 + 12 + 16)
KEYS = {
    *("ratio_to_trl", "step_s", "trl_step_s", "rollout_tokens_per_s", "update_mfu", "push_s", "sleep_wake_s"),
    *("orchestration_share", "trained_tokens", "skipped_groups", "trl", "step_seconds", "stages", "config"),
    *("hardware", "versions", "rollout_alone", "update_alone", "parts", "bounds"),
}


@pytest.fixture(scope="module")
def measured(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The summary that one command writes for the miniature, and the picture that it draws."""
    folder = tmp_path_factory.mktemp("benchmark")
    command = [sys.executable, "-m", "benchmarks.against_trl", "mini", "--our-steps", "1", "--trl-steps", "2"]
    sections = {"work": folder / "work", "results": folder / "results", "plot": folder / "stages.png"}
    arguments = [f"--{name}={value}" for name, value in {"model": tiny_model, **sections}.items()]
    chosen = ["--variants", "recompute,micro=4", "--settings", "sampler_logprobs", "sleep"]
    chosen += ["--plans", "tokens=256,recompute"]
    environment = {**os.environ, "DRGRPO_DEVICE": "cpu"}
    subprocess.run([*command, *arguments, *chosen], cwd=ROOT, env=environment, check=True)
    return json.loads((folder / "results" / "cpu-mini.json").read_text()), folder / "stages.png"


@pytest.mark.engine
def test_one_command_measures_every_part_and_writes_the_summary(measured: tuple[dict[str, Any], Path]) -> None:
    summary, plot = measured
    assert set(summary) >= KEYS
    expected = dict.fromkeys(("step", "rollout", "rollout sleep", "update"), "ok")
    expected["trl recompute,micro=4"] = "ok" if HAS_TRL else "failed"
    assert {name: outcome["status"] for name, outcome in summary["parts"].items()} == expected, summary["parts"]
    assert plot.read_bytes()[:4] == b"\x89PNG"
    assert str(ROOT) not in json.dumps(summary["config"]) and "/tmp" not in json.dumps(summary["config"])


@pytest.mark.engine
def test_our_step_trains_every_token_and_skips_no_group(measured: tuple[dict[str, Any], Path]) -> None:
    summary, _ = measured
    assert (summary["trained_tokens"], summary["skipped_groups"]) == (TRAINED_TOKENS, 0)
    assert len(summary["step_seconds"]) == 1
    assert sum(summary["stages"].values()) == pytest.approx(summary["step_s"])
    assert 0 < summary["orchestration_share"] < 1
    assert summary["update_mfu"] is None and summary["sleep_wake_s"] is None  # a CPU has neither


@pytest.mark.engine
def test_sampler_and_update_alone_do_the_same_work_as_the_step(measured: tuple[dict[str, Any], Path]) -> None:
    summary, _ = measured
    rollout = summary["rollout_alone"]["sampler_logprobs"]
    assert rollout["completion_tokens"] == [TRAINED_TOKENS] * 3
    assert rollout["longest_completion"] == [16] * 3
    assert len(rollout["seconds"]) == 3 and rollout["sleep_wake_s"] is None
    asleep = summary["rollout_alone"]["sleep"]  # which a CPU cannot be
    assert asleep["completion_tokens"] == [TRAINED_TOKENS] * 3
    update = summary["update_alone"]["tokens=256,recompute"]
    assert update["trained_tokens"] == TRAINED_TOKENS and len(update["seconds"]) == 3


@pytest.mark.engine
@pytest.mark.skipif(not HAS_TRL, reason="TRL is not installed")
def test_trl_samples_and_trains_as_many_tokens_in_as_many_optimizer_steps(
    measured: tuple[dict[str, Any], Path],
) -> None:
    summary, _ = measured
    variant = summary["trl"]["recompute,micro=4"]
    assert variant["completion_tokens"] == [TRAINED_TOKENS] * 2
    config = variant["config"]
    assert config["per_device_train_batch_size"] * config["gradient_accumulation_steps"] == 8
    assert config["per_device_train_batch_size"] * config["steps_per_generation"] == 16
    assert config["max_steps"] == 2 * 2 and config["gradient_checkpointing"] is True
    assert summary["ratio_to_trl"] == pytest.approx(variant["step_seconds"][1] / summary["step_s"])


def test_both_schedulers_are_timed_over_the_same_steps(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "scheduler.json"
    arguments = ["--model", str(tiny_model), "--out", str(out), "--requests", "16", "--tokens", "40"]
    subprocess.run([sys.executable, "-m", "benchmarks.scheduler", *arguments], cwd=ROOT, check=True)
    result = json.loads(out.read_text())
    # One step reads the prompts and samples, 39 more sample; two find nothing to do, with the last tokens on their way.
    assert result["ours"]["steps"] == result["vllm"]["steps"] == 42
    for name in ("ours", "vllm"):
        assert all(
            result[name][part]["max_ms"] >= result[name][part]["median_ms"] > 0 for part in ("schedule", "update")
        )


def test_the_hosts_stages_are_timed_on_completions_of_the_workloads_lengths(tiny_model: Path, tmp_path: Path) -> None:
    data, out = write_problems(tmp_path / "data", num_words=12), tmp_path / "host.json"
    arguments = ["--workload=mini", f"--model={tiny_model}", f"--data={data}", f"--out={out}", "--repeats=2"]
    subprocess.run([sys.executable, "-m", "benchmarks.host", *arguments], cwd=ROOT, check=True)
    result = json.loads(out.read_text())
    assert {stage: len(seconds) for stage, seconds in result["seconds"].items()} == dict.fromkeys(
        ("transport", "rollout", "grade", "samples", "written"), 2
    )
    waited = [
        seconds for stage, seconds in result["median"].items() if stage in ("transport", "rollout", "grade", "samples")
    ]
    assert result["median"]["waited_for"] == pytest.approx(sum(waited)) and len(waited) == 4
    config = load_config(WORKLOADS["mini"].config(tiny_model, data))
    requests = [SimpleNamespace(max_tokens=length) for length in (4, 0, 12)]
    host = SimpleNamespace(config=config, tokenizer=range(7), requests=lambda step: requests)
    sampled = completions(host, 0)  # type: ignore[arg-type]
    assert [len(completion.token_ids) for completion in sampled] == [4, 16, 12]  # the limit where none is given
    assert {index for completion in sampled for index in completion.token_ids} <= set(range(7))


def test_vllm_gets_a_limit_for_each_prompt_of_trl() -> None:
    def generate(prompts: list[str], *, sampling_params: Any, use_tqdm: bool) -> list[tuple[str, int, float]]:
        assert not use_tqdm
        return [(prompt, p.max_tokens, p.temperature) for prompt, p in zip(prompts, sampling_params, strict=True)]

    shared = SimpleNamespace(max_tokens=99, temperature=0.5)
    limited = with_limits(generate, [4, 8])(["a", "b", "c"], sampling_params=shared, use_tqdm=False)
    assert limited == [("a", 4, 0.5), ("b", 8, 0.5), ("c", 4, 0.5)]
    assert shared.max_tokens == 99


def step_result(**median: float) -> dict[str, Any]:
    """A result of `benchmarks.step` with made-up figures: a step of 10 s, 9.9 s of it in the engines."""
    figures = {
        "account/step": 10.0,
        "account/engines": 9.9,
        "account/orchestration": 0.1,
        "account/orchestration_share": 0.01,
        "busy/RolloutEngine.generate": 5.0,
        "busy/TrainerRank.update": 4.0,
        "busy/TrainerRank.push": 0.25,
        "engine_seconds/push": 0.25,
        "rollout/tokens_per_s": 52428.8,
        "rollout/completion_tokens": 262144.0,
        "completion_length/max": 512.0,
        "update/mfu": 0.5,
        "update/trained_tokens": 262144.0,
        "update/computed_tokens": 269184.0,
        "update/sequence_tokens": 318464.0,
        "advantage/trained_groups": 64.0,
    } | median
    gpu = {"cpu": "x86_64", "cores": 16, "gpus": ["NVIDIA H100 80GB HBM3, 81559 MiB, 580.159.04"]}
    return {
        "hardware": gpu,
        "versions": {},
        "config": {"data": {"prompts_per_step": 64}},
        "num_parameters": 1_000_000_000,
        "median": figures,
        "steps": [figures],
    }


def trl_result(*seconds: float) -> dict[str, Any]:
    """A result of `benchmarks.trl_step` whose iterations took `seconds`."""
    parts = {"generation": 0.5, "scoring": 0.125, "update": 0.25, "sync": 0.125}
    tokens = {"prompt_tokens": 7040, "completion_tokens": 262144}
    iterations = [{"seconds": one, **{name: share * one for name, share in parts.items()}, **tokens} for one in seconds]
    return {"hardware": {"gpus": []}, "versions": {}, "config": {"bf16": True}, "iterations": iterations}


def test_the_ratio_is_trls_fastest_variant_over_our_step() -> None:
    results = {
        "step": step_result(),
        "trl recompute": trl_result(90.0, 41.0, 43.0, 42.0),  # median after the warm-up: 42
        "trl liger": trl_result(70.0, 36.0, 34.0),  # 35
        "trl micro=64": trl_result(1.0),  # ran out of time after its warm-up
        "openrlhf sleep": trl_result(99.0, 50.0),
    }
    outcomes = {"trl micro=64": {"status": "timed out", "seconds": 300.0}}
    summary = summarize("a", results, outcomes)
    assert (summary["ratio_to_trl"], summary["step_s"], summary["trl_step_s"]) == (3.5, 10.0, 35.0)
    assert summary["trl_best"] == "liger"
    assert (summary["ratio_to_openrlhf"], summary["openrlhf_best"]) == (5.0, "sleep")
    assert list(summary["openrlhf"]) == ["sleep"]
    assert {name: variant["step_s"] for name, variant in summary["trl"].items()} == {
        "recompute": 42.0,
        "liger": 35.0,
        "micro=64": None,
    }
    assert summary["parts"] == outcomes
    assert (summary["trained_tokens"], summary["skipped_groups"], summary["update_mfu"]) == (262144, 0, 0.5)
    assert summary["update_effective_mfu"] == pytest.approx(0.5 * 318464 / 269184)


def test_what_was_not_measured_is_null() -> None:
    summary = summarize("a", {}, {"step": {"status": "failed", "seconds": 3.0, "message": "no GPU"}})
    assert set(summary) >= KEYS
    assert all(summary[key] is None for key in ("ratio_to_trl", "step_s", "trl_step_s", "trained_tokens"))
    assert summarize("a", {"step": step_result()}, {})["ratio_to_trl"] is None
    assert summarize("a", {"trl x": trl_result(9.0, 8.0)}, {})["trl_step_s"] == 8.0


def test_sleep_and_wake_are_the_steps_own_or_those_of_the_sampler_alone() -> None:
    alone = {
        "rollout": {"settings": {"workload": {"sleep_wake_s": None}}},
        "rollout sleep": {"settings": {"sleep": {"sleep_wake_s": 0.75}}},
    }
    summary = summarize("a", {"step": step_result(), **alone}, {})
    assert summary["sleep_wake_s"] == 0.75 and list(summary["rollout_alone"]) == ["workload", "sleep"]
    slept = step_result(**{"busy/RolloutEngine.sleep": 0.25, "busy/RolloutEngine.wake_up": 0.125})
    assert summarize("a", {"step": slept, **alone}, {})["sleep_wake_s"] == 0.375


def test_a_group_without_signal_in_any_step_is_seen() -> None:
    result = step_result()
    result["steps"] = [result["median"], {**result["median"], "advantage/trained_groups": 61.0}]
    assert summarize("a", {"step": result}, {})["skipped_groups"] == 3


def test_limits_of_the_device_stand_beside_what_was_measured() -> None:
    bounds = summarize("a", {"step": step_result()}, {})["bounds"]
    # 512 passes over 2e9 bytes at 3.35e12 byte/s; 6e9 FLOP a token at 989e12 FLOP/s.
    assert bounds["generation"]["weights_read_s"] == pytest.approx(512 * 2e9 / 3.35e12)
    assert bounds["generation"]["seconds_per_pass"] == pytest.approx(5 / 512)
    assert bounds["update"]["arithmetic_s"] == pytest.approx(6e9 * 269184 / 989e12)


def test_stages_add_up_to_the_step() -> None:
    stages = own_stages(step_result()["median"])
    assert stages["check"] == pytest.approx(9.9 - 5 - 4 - 0.25)
    assert sum(stages.values()) == pytest.approx(10.0)
    shares = summarize("a", {"step": step_result()}, {})["stage_shares"]
    assert shares["generation"] == 0.5 and shares["orchestration"] == pytest.approx(0.01)
    assert sum(peer(trl_result(3.0, 8.0))["stages"].values()) == 8.0


def test_overlapping_calls_count_once_and_only_within_the_step() -> None:
    calls = [Call(5, 8, "b"), Call(1, 4, "a"), Call(2, 3, "a"), Call(7, 12, "c"), Call(-2, 1.5, "d")]
    assert busy_seconds(calls, (0, 10)) == 4 + 5  # 0 to 4, 5 to 10
    assert busy_seconds(calls, (3.5, 6)) == 0.5 + 1
    assert busy_seconds([], (0, 10)) == 0


def test_orchestration_is_the_step_without_the_union_of_the_engines_calls() -> None:
    calls = [Call(100, 104, "Rank.update"), Call(103, 105, "Engine.score")]
    calls += [Call(99, 101, "Engine.generate"), Call(90, 99, "Engine.wake"), Call(103, 107, "Host.score")]
    step = account((100.0, 110.0), {"account/mlflow": 0.5}, calls)
    assert (step["account/step"], step["account/engines"]) == (10.0, 5.0)
    assert (step["account/orchestration"], step["account/orchestration_share"]) == (5.0, 0.5)
    assert step["account/mlflow"] == 0.5
    assert (step["busy/Rank.update"], step["busy/Engine.score"]) == (4, 2)
    assert step["busy/Engine.generate"] == 1  # its other second was in the step before
    assert step["host/Host.score"] == 4  # an engine was at work in half of it, and it is none itself
    assert "busy/Engine.wake" not in step


def test_the_workloads_are_those_that_the_goals_are_stated_for() -> None:
    a, b = (WORKLOADS[name].config(Path("model"), Path("data")) for name in "ab")
    assert a["data"]["prompts_per_step"] * a["rollout"]["group_size"] == a["trainer"]["completions_per_update"] == 512
    assert a["rollout"]["max_completion_tokens"] == 512 and a["rollout"]["ignore_eos"]
    lengths = b["rollout"]["forced_lengths"]
    assert len(lengths) == b["data"]["prompts_per_step"] * b["rollout"]["group_size"] == 1024
    assert 195 < sum(lengths) / len(lengths) < 205 and max(lengths) == 1024
    assert b["trainer"]["completions_per_update"] * 8 == 1024


def test_words_of_the_command_line_become_settings() -> None:
    assert parse_options("liger,micro=8,memory=0.4") == {"liger": 1, "micro": 8, "memory": 0.4}
    assert parse_options("") == {}
    with pytest.raises(ValueError, match="could not convert"):
        parse_options("micro=many")
    config = {"trainer": {"tokens": 1}, "total_steps": 3}
    changed = overridden(config, ["trainer.tokens=2", "placement.sleep=true"])
    assert changed == {"trainer": {"tokens": 2}, "placement": {"sleep": True}, "total_steps": 3}
    assert config["trainer"] == {"tokens": 1}
    assert medians([{"a": 1.0, "b": 2.0}, {"a": 3.0}, {"a": 2.0}]) == {"a": 2.0}


@pytest.mark.parametrize(
    ("gpu", "name"),
    [
        ("NVIDIA H100 80GB HBM3, 81559 MiB, 580.159.04", "h100"),
        ("NVIDIA A100-SXM4-40GB, 40960 MiB, 550.1", "a100"),
        ("NVIDIA GeForce RTX 4090, 24564 MiB, 550.1", "rtx-4090"),
        ("NVIDIA L40S, 46068 MiB, 550.1", "l40s"),
        (None, "cpu"),
    ],
)
def test_a_result_is_named_after_its_hardware(gpu: str | None, name: str) -> None:
    assert hardware_name({"gpus": [gpu] if gpu else []}) == name


def test_a_result_names_the_gpus_that_its_process_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "$@"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert hardware()["gpus"][0].split()[-1] == "--id=1"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert "--id" not in hardware()["gpus"][0]


def test_a_part_that_hangs_ends_with_its_limit_and_leaves_nothing(tmp_path: Path) -> None:
    part = Part("hangs", ["http.server", "--bind", "127.0.0.1", "0"], tmp_path / "hangs.json", limit_s=3)
    outcome = part.run(time_left_s=60)
    assert outcome["status"] == "timed out" and outcome["seconds"] >= 3
    own = [process for process in psutil.Process().children(recursive=True) if "http.server" in process.cmdline()]
    assert own == []


def test_a_part_that_fails_says_why_and_one_without_time_is_not_begun(tmp_path: Path) -> None:
    out = tmp_path / "part.json"
    out.write_text("of an earlier call")
    part = Part("part", ["benchmarks.no_such_module"], out, limit_s=30)
    assert part.run(time_left_s=SHORTEST_S - 1) == {"status": "no time left", "seconds": 0.0}
    assert out.exists()
    outcome = part.run(time_left_s=60)
    assert outcome["status"] == "failed" and "no_such_module" in outcome["message"]
    assert not out.exists()
    started = time.monotonic()
    assert Part("part", ["benchmarks.options"], out, limit_s=30).run(time_left_s=60)["status"] == "ok"
    assert time.monotonic() - started < 30


def test_the_plot_draws_what_there_is(tmp_path: Path) -> None:
    results = {"step": step_result(), "trl liger": trl_result(70.0, 36.0), "trl micro=64": trl_result(1.0)}
    results["openrlhf sleep,liger"] = trl_result(9.0, 50.0)
    bars = stage_bars(summarize("a", results, {}))
    assert list(bars) == ["Dr. GRPO", "TRL liger", "OpenRLHF sleep, liger"]
    for name, chosen in {"both": results, "ours": {"step": step_result()}, "none": {}}.items():
        plot_stages(summarize("a", chosen, {}), tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_every_arm_of_the_baseline_is_a_configuration_that_loads_and_differs_from_dr_grpo() -> None:
    parameters = deployed()
    assert list(parameters["arms"]) == ["dr-grpo", "grpo"] and len(parameters["seeds"]) == 3
    base = load_deployment("gsm8k-smollm2")
    digests = {config_digest(base)}
    for overrides in (parameters["arms"]["grpo"], *ABLATIONS.values()):
        digests.add(config_digest(load_config(base, overrides)))
    assert len(digests) == 2 + len(ABLATIONS)
    assert config_digest(load_config(base, parameters["arms"]["grpo"])) == config_digest(
        load_deployment("gsm8k-smollm2-grpo")
    )
