"""What is refused before an engine starts: every mistake at once, with field, value and remedy."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from drgrpo.config import TrainConfig
from drgrpo.config.checks import EVALUATION_CHECKS
from drgrpo.config.errors import ConfigError
from drgrpo.config.machine import GIB
from drgrpo.preflight import checked_config
from drgrpo.settings import Settings, resolved
from tests.tiny_model import build_tiny_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the tiny model, data, and a reward module."""
    folder = tmp_path_factory.mktemp("good")
    build_tiny_model(folder / "model")
    for split in ("train", "test"):
        rows = [{"question": f"{split} {i}", "answer": str(i)} for i in range(4)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def overrides(good: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model.path": str(good / "model"),
        "data.train": str(good),
        "data.eval": str(good),
        "data.prompts_per_step": 2,
        "data.max_prompt_tokens": 64,
        "rollout.group_size": 2,
        "rollout.max_completion_tokens": 16,
        "trainer.completions_per_update": 4,
    } | {name.replace("__", "."): value for name, value in changes.items()}


def settings_in(root: Path, **options: Any) -> Settings:
    return resolved(Settings(root=root, device="cpu", **options))


def mistakes(good: Path, root: Path, settings: Settings | None = None, **changes: Any) -> list[str]:
    """Text of every mistake, after seeing that the output directory was not touched."""
    with pytest.raises(ConfigError) as caught:
        checked_config(TrainConfig(), overrides(good, **changes), settings or settings_in(root))
    assert not (root / ".drgrpo" / "runs").exists()
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{len(caught.value.mistakes)} mistake")
    return [str(mistake) for mistake in caught.value.mistakes]


def test_a_good_configuration_passes_with_its_overrides_applied(good: Path, tmp_path: Path) -> None:
    config = checked_config(TrainConfig(), overrides(good, optimizer__lr=3e-6), settings_in(tmp_path))
    assert (config.optimizer.lr, config.rollout.group_size) == (3e-6, 2)


def test_a_missing_model_is_told_once(good: Path, tmp_path: Path) -> None:
    (text,) = mistakes(good, tmp_path, model__path="/no/such/model")
    assert text.startswith("model.path = '/no/such/model': no such directory") and "give a directory" in text


def test_a_damaged_model_is_told_once(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good / "model", tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (text,) = mistakes(good, tmp_path, model__path=str(tmp_path / "model"))
    assert "model.safetensors has" in text and "download it again" in text
    weights.write_bytes(b"version https://git-lfs")
    (text,) = mistakes(good, tmp_path, model__path=str(tmp_path / "model"))
    assert "not safetensors" in text


def test_limits_over_the_models_context_name_what_still_fits(good: Path, tmp_path: Path) -> None:
    (text,) = mistakes(good, tmp_path, rollout__max_completion_tokens=500)
    assert text.startswith("rollout.max_completion_tokens = 500")
    assert "over the context of 512" in text and "lower it to at most 448" in text


def test_both_data_sources_are_judged_though_the_first_is_faulty(good: Path, tmp_path: Path) -> None:
    train, test = mistakes(good, tmp_path, data__train="/no/train", data__eval="/no/eval")
    assert train.startswith("data.train = '/no/train': no such file") and test.startswith("data.eval = '/no/eval'")


def test_malformed_and_empty_data_name_file_and_line(good: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "1", "answer": "1"}\nnot json\n{"question": "", "answer": "1"}\n')
    (text,) = mistakes(good, tmp_path, data__train=str(bad))
    assert text.startswith("data.train = ") and f"{bad}:2: " in text
    bad.write_text('{"question": "1", "answer": "1"}\n{"answer": "1"}\n')
    (text,) = mistakes(good, tmp_path, data__train=str(bad))
    assert f"{bad}:2: no column 'question'" in text
    bad.write_text("")
    (text,) = mistakes(good, tmp_path, data__train=str(bad))
    assert "holds no problems" in text


def test_training_on_the_held_out_problems_is_refused(good: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.jsonl"
    shutil.copy(good / "test.jsonl", copy)
    (text,) = mistakes(good, tmp_path, data__train=str(copy), data__eval=str(good))
    assert "held out" in text


def test_a_reward_function_that_cannot_be_imported_is_named(good: Path, tmp_path: Path) -> None:
    (text,) = mistakes(good, tmp_path, reward__functions={"no.such:function": 1.0})
    assert text.startswith("reward.functions = {'no.such:function': 1.0}") and "ModuleNotFoundError" in text


def test_too_little_memory_for_the_models_size(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drgrpo.config.machine.free_memory", lambda: 5 * GIB)
    assert checked_config(TrainConfig(), overrides(good, model__dtype="float32"), settings_in(tmp_path))
    (text,) = mistakes(good, tmp_path, settings_in(tmp_path, cpu_kvcache_gib=3.0))
    assert text.startswith("model.path = ") and "5.0 GiB are free" in text and "DRGRPO_CPU_KVCACHE_GIB" in text
    # The packaged model has 134.5 M parameters, 24 bytes each on a CPU in float32.
    texts = mistakes(good, tmp_path, model__path="smollm2", model__dtype="float32")
    assert any("150 M parameters needs about 7.4 GiB" in text for text in texts)


def test_too_little_disk(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drgrpo.config.machine.free_disk", lambda _: 2**20)
    (text,) = mistakes(good, tmp_path)
    assert text.startswith("DRGRPO_RUNS_DIR = ") and "0.0 GiB are free" in text


def test_more_ranks_than_gpus(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    settings = resolved(Settings(root=tmp_path, device="cuda"))
    (text,) = mistakes(good, tmp_path, settings, trainer__num_ranks=4)
    assert text.startswith("trainer.num_ranks = 4") and "there are 2" in text
    assert checked_config(TrainConfig(), overrides(good, trainer__num_ranks=2), settings)
    elsewhere = settings.model_copy(update={"ray_address": "10.0.0.1:6379"})
    assert checked_config(TrainConfig(), overrides(good, trainer__num_ranks=4), elsewhere)


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("http://127.0.0.1:9", "does not answer"),
        ("sqlite:////no/such/folder/mlflow.db", "missing or not writable"),
        ("mlruns", "neither a server nor a database"),
    ],
)
def test_an_unreachable_mlflow(good: Path, tmp_path: Path, uri: str, problem: str) -> None:
    (text,) = mistakes(good, tmp_path, settings_in(tmp_path, mlflow_tracking_uri=uri))
    assert text.startswith(f"DRGRPO_MLFLOW_TRACKING_URI = {uri!r}") and problem in text and "make serve" in text


def test_an_unreachable_hub_is_told_for_model_and_data(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    changes: dict[str, Any] = {"model__path": "nobody/model", "data__train": "nobody/data", "data__eval": "nobody/data"}
    model, train, test = mistakes(good, tmp_path, **changes)
    assert model.startswith("model.path = 'nobody/model'") and "give a local directory" in model
    assert train.startswith("data.train = 'nobody/data'") and test.startswith("data.eval = 'nobody/data'")


def test_all_mistakes_come_at_once_from_configuration_model_data_and_tracking(good: Path, tmp_path: Path) -> None:
    texts = mistakes(
        good,
        tmp_path,
        settings_in(tmp_path, mlflow_tracking_uri="http://127.0.0.1:9"),
        rollout__group_siz=4,
        optimizer__lr=-1,
        rollout__group_size=1,
        trainer__completions_per_update=3,
        model__path="/no/model",
        data__eval="/no/eval",
        reward__functions={"no.such:function": 1.0},
    )
    fields = [text.split(" = ")[0] for text in texts]
    assert fields == [
        "rollout.group_siz",
        "optimizer.lr",
        "rollout.group_size",
        "trainer.completions_per_update",
        "model.path",
        "data.eval",
        "reward.functions",
        "DRGRPO_MLFLOW_TRACKING_URI",
    ]
    assert "did you mean `rollout.group_size`?" in texts[0]
    assert "≥ 0, ≤ 1" in texts[1]


def for_evaluation(values: dict[str, Any], settings: Settings) -> TrainConfig:
    return checked_config(TrainConfig(), values, settings, checks=EVALUATION_CHECKS, train=False)


def test_an_evaluation_needs_one_file_and_asks_for_no_training_problems(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    alone = {"model.path": str(good / "model"), "data.eval": str(good / "test.jsonl")}
    alone |= {"data.max_prompt_tokens": 64, "rollout.max_completion_tokens": 16}  # the model's context is short
    assert for_evaluation(alone, settings_in(tmp_path)).data.train == "openai/gsm8k"
    assert for_evaluation(alone | {"data.train": alone["data.eval"]}, settings_in(tmp_path))
    with pytest.raises(ConfigError) as caught:
        for_evaluation(alone | {"data.eval": "/no/eval.jsonl"}, settings_in(tmp_path))
    (mistake,) = caught.value.mistakes
    assert str(mistake).startswith("data.eval = '/no/eval.jsonl': no such file")


def test_an_evaluation_has_room_where_training_has_not(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drgrpo.config.machine.free_memory", lambda: 5 * GIB)
    monkeypatch.setattr("drgrpo.config.machine.free_disk", lambda _: GIB // 2)
    # The packaged model's 150 M parameters: 3 + 24 bytes each + 1 in training, 3 + 4 bytes each + 1 here, in GiB.
    values = overrides(good, model__path="smollm2", model__dtype="float32")
    assert for_evaluation(values, settings_in(tmp_path))
    with pytest.raises(ConfigError) as caught:
        checked_config(TrainConfig(), values, settings_in(tmp_path))
    assert [mistake.field for mistake in caught.value.mistakes] == ["model.path", "DRGRPO_RUNS_DIR"]


def test_an_evaluation_takes_a_model_that_the_trainer_would_compute_wrongly(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good / "model", tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sliding_window": 64}))
    (text,) = mistakes(good, tmp_path, model__path=str(tmp_path / "model"))
    assert "sliding window" in text
    assert for_evaluation(overrides(good, model__path=str(tmp_path / "model")), settings_in(tmp_path))


def test_what_is_probably_not_meant_is_logged(good: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="drgrpo.preflight"):
        checked_config(TrainConfig(), overrides(good, optimizer__lr=0.0), settings_in(tmp_path))
    assert any("optimizer.lr = 0.0" in record.getMessage() for record in caplog.records)


def test_the_flow_as_a_program_fails_before_ray_or_a_run_directory_exist(good: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from drgrpo.preflight import checked_config\n"
        "from drgrpo.settings import load_settings\n"
        f"checked_config({{}}, {overrides(good, model__path='/no/model', rollout__group_siz=1)!r}, load_settings())\n"
    )
    environment = os.environ | {"DRGRPO_ROOT": str(tmp_path), "DRGRPO_DEVICE": "cpu"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "2 mistakes in the configuration" in done.stderr and "rollout.group_siz = 1" in done.stderr
    assert not (tmp_path / ".drgrpo" / "runs").exists()
    ours = [p for p in psutil.process_iter(["name"]) if p.info["name"] == "raylet" and p.ppid() == os.getpid()]
    assert ours == []
