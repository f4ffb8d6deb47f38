"""The peer OpenRLHF does the workload's work; what stands in for flash-attn there packs and attends as it should."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.openrlhf_patches import attend, pad, unpad
from benchmarks.openrlhf_step import command_line, openrlhf_settings
from benchmarks.workloads import WORKLOADS, write_problems
from drgrpo.config import TrainConfig

ROOT = Path(__file__).parents[2]


def workload_a() -> TrainConfig:
    return TrainConfig.model_validate(WORKLOADS["a"].config(Path("/model"), Path("/data")))


def test_workload_a_is_one_optimizer_step_of_all_completions() -> None:
    settings = openrlhf_settings(workload_a(), {"micro": "8", "liger": ""}, num_steps=3, on_gpu=True)
    assert settings["rollout.batch_size"] * settings["rollout.n_samples_per_prompt"] == 64 * 8
    assert settings["train.batch_size"] == 64 * 8 and settings["train.micro_batch_size"] == 8
    assert settings["data.max_samples"] == 3 * 64 and settings["rollout.max_new_tokens"] == 512
    assert settings["algo.advantage.estimator"] == "dr_grpo" and settings["algo.kl.init_coef"] == 0
    assert settings["ds.use_liger_kernel"] and not settings["actor.gradient_checkpointing_enable"]


def test_a_flag_is_there_or_not_and_a_list_is_several_words() -> None:
    words = command_line({"a.b": True, "c": False, "d": 0, "e": [0.9, 0.95]})
    assert words == ["--a.b", "--d", "0", "--e", "0.9", "0.95"]


def test_packing_keeps_tokens_positions_and_successors_and_is_undone() -> None:
    ids = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 0]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    row, positions, following, _, places = unpad(ids, mask, None)
    assert row.tolist() == [[5, 6, 7, 8, 9]] and positions.tolist() == [[0, 1, 0, 1, 2]]
    assert following[0, [0, 2, 3]].tolist() == [6, 8, 9]  # a sequence's last token has none
    values = torch.arange(1.0, 6.0)[None]
    assert pad(values, None, 0, places, 2, 4).tolist() == [[0, 0, 1, 2], [3, 4, 5, 0]]


def test_a_packed_row_attends_as_its_sequences_do_alone() -> None:
    torch.manual_seed(0)
    unpad(torch.ones(2, 3, dtype=torch.long), torch.tensor([[1, 1, 0], [1, 1, 1]]), None)
    query, key, value = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
    found, _ = attend(None, query, key, value, None, scaling=0.5)
    for start, end in ((0, 2), (2, 5)):
        for head in range(4):  # two heads of queries for each of keys
            q, k, v = query[0, head, start:end], key[0, head // 2, start:end], value[0, head // 2, start:end]
            scores = (0.5 * q @ k.T).masked_fill(torch.ones(end - start, end - start).triu(1).bool(), -torch.inf)
            torch.testing.assert_close(found[0, start:end, head], scores.softmax(-1) @ v)


@pytest.mark.engine
@pytest.mark.timeout(600)
@pytest.mark.skipif(importlib.util.find_spec("openrlhf") is None, reason="OpenRLHF is not installed")
def test_openrlhf_samples_and_trains_every_token_in_as_many_optimizer_steps(tiny_model: Path, tmp_path: Path) -> None:
    data, out = write_problems(tmp_path / "data", num_words=12), tmp_path / "openrlhf.json"
    arguments = [f"--model={tiny_model}", f"--data={data}", f"--out={out}", "--steps=2", "--variant=micro=4"]
    command = [sys.executable, "-m", "benchmarks.openrlhf_step", "--workload=mini", *arguments]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "DRGRPO_DEVICE": "cpu"}, check=True)
    iterations = json.loads(out.read_text())["iterations"]
    wanted = 4 * (4 + 8 + 12 + 16)
    assert [(one["completion_tokens"], one["trained_tokens"]) for one in iterations] == [(wanted, wanted)] * 2
    assert [one["optimizer_steps"] for one in iterations] == [2, 2]
