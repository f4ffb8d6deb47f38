"""What is refused before an engine starts: every mistake at once, with field, value and remedy."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from drgrpo.config import TrainConfig
from drgrpo.config.checks import EVALUATION_CHECKS
from drgrpo.config.device_memory import GIB
from drgrpo.config.errors import ConfigError
from drgrpo.config.output_lock import hold_output_directory
from drgrpo.config.overrides import apply_overrides
from drgrpo.data.sources import load_problems
from drgrpo.description import Description, write_description
from drgrpo.models import inspect_model
from drgrpo.origin import Origin
from drgrpo.preflight import checked_config
from drgrpo.settings import Settings, resolved
from drgrpo.start import checked_run
from drgrpo.tracking import check_tracking_uri
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


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without a run; making one takes seconds, copying it none."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    check_tracking_uri(f"sqlite:///{path}")
    return path


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, empty_store: Path) -> None:
    """A machine with room and an MLflow store: what else runs here has no part in these tests."""
    monkeypatch.setattr("drgrpo.config.machine.free_memory", lambda: 64 * GIB)
    monkeypatch.setattr("drgrpo.config.machine.free_disk", lambda _: 1000 * GIB)
    (tmp_path / ".drgrpo").mkdir()
    shutil.copy(empty_store, tmp_path / ".drgrpo" / "mlflow.db")


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
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (text,) = mistakes(good, tmp_path, settings)
    assert text.startswith("trainer.num_ranks = 1") and "there are 0" in text
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


@pytest.mark.parametrize("changes", [{"actor.optimizer.lr": -1}, {"optimizer": {"lr": -1}}, {"optimizer.lr": -1}])
def test_a_bad_value_hides_nothing_else_however_it_is_spelt(
    good: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    changes |= {"model.path": "/no/model", "data.eval": "/no/eval"}
    settings = settings_in(tmp_path, mlflow_tracking_uri="mlruns")
    texts = mistakes(good, tmp_path, settings, **changes)
    assert [text.split(" = ")[0] for text in texts] == [
        "optimizer.lr",
        "model.path",
        "data.eval",
        "DRGRPO_MLFLOW_TRACKING_URI",
    ]


@pytest.mark.parametrize(
    ("path", "value"),
    [("data.train", ""), ("data.trian", "x"), ("data.eval", ""), ("model.path", ""), ("model.pth", "x"), ("data", 5)],
)
def test_the_default_in_place_of_a_wrong_value_is_not_judged(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, value: Any
) -> None:
    """Without the override, the deployment's own sources would be: none of them is there."""
    monkeypatch.setattr("drgrpo.inspection.load_problems", forbidden("openai/gsm8k"))
    monkeypatch.setattr("drgrpo.inspection.inspect_model", forbidden("Qwen/Qwen2.5-1.5B-Instruct"))
    given = {name: v for name, v in overrides(good).items() if name != path and not name.startswith(f"{path}.")}
    given = {
        name: v
        for name, v in given.items()
        if name != {"data.trian": "data.train", "model.pth": "model.path"}.get(path)
    }
    with pytest.raises(ConfigError) as caught:
        checked_config(TrainConfig(), given | {path: value}, settings_in(tmp_path))
    assert [mistake.field for mistake in caught.value.mistakes] == [path]


def forbidden(name: str) -> Any:
    """Refuses `name`, and otherwise does as the function that it stands for."""
    functions = {"openai/gsm8k": load_problems, "Qwen/Qwen2.5-1.5B-Instruct": inspect_model}

    def look(first: Any, **options: Any) -> Any:
        assert name not in (first, getattr(first, "name", "")), f"{name} was judged"
        return functions[name](first, **options)

    return look


def test_training_and_held_out_file_in_one_is_told_once(good: Path, tmp_path: Path) -> None:
    file = str(good / "train.jsonl")
    (text,) = mistakes(good, tmp_path, data__train=file, data__eval=file)
    assert text.startswith(f"data.eval = {file!r}: the same problems as data.train")


def test_prompts_over_the_limit_are_counted_by_the_tokenizer_before_a_start(good: Path, tmp_path: Path) -> None:
    # `train 0` in the tiny tokenizer's chat template is 16 tokens, `test 0` 14.
    train, held_out = mistakes(good, tmp_path, data__max_prompt_tokens=13)
    assert train == (
        "data.max_prompt_tokens = 13: every one of the 4 prompts of data.train is longer, the shortest has 16 tokens; "
        "raise the limit"
    )
    assert "4 prompts of data.eval is longer, the shortest has 14 tokens" in held_out
    (text,) = mistakes(good, tmp_path, data__max_prompt_tokens=15, model__dtype="float32")
    assert "data.train is longer" in text
    # With data that fail, the other source is counted still.
    fault, text = mistakes(good, tmp_path, data__max_prompt_tokens=13, data__train="/no/train")
    assert fault.startswith("data.train = '/no/train'") and "data.eval is longer" in text


def test_too_few_problems_after_dropping_long_prompts(good: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    questions = ["train 0", "train 1", *(f"train {'0' * 40} {i}" for i in range(6))]
    data.write_text("".join(json.dumps({"question": q, "answer": "1"}) + "\n" for q in questions))
    changes = {"data__train": str(data), "data__max_prompt_tokens": 20, "data__prompts_per_step": 4}
    (text,) = mistakes(good, tmp_path, **changes)
    assert text == (
        "data.prompts_per_step = 4: data.train has 2 problems with a prompt of at most 20 tokens, so a step would hold "
        "some twice, with the same samples; lower it to 2, or raise data.max_prompt_tokens"
    )
    assert checked_config(
        TrainConfig(), overrides(good, **changes | {"data__prompts_per_step": 2}), settings_in(tmp_path)
    )


@pytest.fixture
def changed(good: Path, tmp_path: Path) -> Callable[[str], Path]:
    """The tiny model with another chat template."""

    def make(template: str) -> Path:
        shutil.copytree(good / "model", tmp_path / "model")
        (tmp_path / "model" / "chat_template.jinja").unlink()
        if template:
            (tmp_path / "model" / "chat_template.jinja").write_text(template)
        return tmp_path / "model"

    return make


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("", "the model's tokenizer has no chat template; use plain, r1 or qwen_math"),
        (
            "{{ raise_exception('no system') }}",
            "refuses the prompt (no system); leave data.system_prompt empty, or use",
        ),
    ],
)
def test_a_tokenizer_without_a_chat_template_is_told_with_the_rest(
    good: Path, tmp_path: Path, changed: Callable[[str], Path], template: str, told: str
) -> None:
    model = str(changed(template))
    text, reward = mistakes(good, tmp_path, model__path=model, reward__functions={"no.such:function": 1.0})
    assert text.startswith("data.prompt_style = 'chat': ") and told in text
    assert reward.startswith("reward.functions")
    assert checked_config(
        TrainConfig(),
        overrides(good, model__path=model, data__prompt_style="plain"),
        settings_in(tmp_path),
    )


def test_a_tokenizer_that_cannot_be_loaded_is_told(good: Path, tmp_path: Path, changed: Callable[[str], Path]) -> None:
    model = changed("{{ messages }}")
    (model / "tokenizer.json").write_text("{}")
    (text,) = mistakes(good, tmp_path, model__path=str(model))
    assert (
        text.startswith(f"model.path = {str(model)!r}: its tokenizer cannot be loaded: ")
        and "save it there again" in text
    )


def on_gpu(monkeypatch: pytest.MonkeyPatch, gib: float) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr("drgrpo.preflight.smallest_device", lambda _: int(gib * GIB))


def hub_model(monkeypatch: pytest.MonkeyPatch, folder: Path, num_parameters: int) -> None:
    """A Hub that knows one model, of the shape of Qwen2.5-1.5B, and hands out its small files."""
    shape = {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "vocab_size": 151936,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
    }
    shutil.copytree(folder / "model", folder / "hub", dirs_exist_ok=True)
    (folder / "hub" / "model.safetensors").unlink()
    (folder / "hub" / "config.json").write_text(json.dumps(shape))
    siblings = [SimpleNamespace(rfilename="model.safetensors")]
    info = SimpleNamespace(siblings=siblings, safetensors=SimpleNamespace(total=num_parameters))

    def snapshot(*_: Any, allow_patterns: list[str], local_files_only: bool = False, **__: Any) -> str:
        if local_files_only:
            raise FileNotFoundError("not in the cache")
        assert "*.safetensors" not in allow_patterns, "the weights were downloaded"
        return str(folder / "hub")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: info)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(folder / "hub" / "config.json"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)


def test_the_size_of_a_hub_model_is_the_hubs_and_no_weights_are_loaded(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_model(monkeypatch, good, 4_000_000_000)
    (text,) = mistakes(good, tmp_path, model__path="owner/name", model__dtype="bfloat16")
    # 20 x 4e9 bytes: 12 + 4 + 2 for the trainer, 2 for the sampler; and 3 GiB for processes, 1 of KV cache.
    assert "4000 M parameters needs about 78.5 GiB of memory, 64.0 GiB are free" in text
    hub_model(monkeypatch, good, 1_500_000_000)
    assert checked_config(TrainConfig(), overrides(good, model__path="owner/name"), settings_in(tmp_path))


def test_a_model_that_does_not_fit_beside_the_sampler_on_the_gpu(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_model(monkeypatch, good, 1_543_714_304)
    settings = resolved(Settings(root=tmp_path, device="cuda"))
    changes = {"model__path": "owner/name", "trainer__gradient_checkpointing": True}
    on_gpu(monkeypatch, 79.6)
    assert checked_config(TrainConfig(), overrides(good, **changes), settings)
    on_gpu(monkeypatch, 45.0)
    (text,) = mistakes(good, tmp_path, settings, **changes)
    # 25.9 GiB of states, 1.3 of layers' inputs, 2.3 of the head.
    assert text.startswith(
        "rollout.gpu_memory_utilization = 0.45: of the device's 45.0 GiB the sampler takes 20.2, the trainer needs "
        "about 29.5, and 2.5 go to contexts and buffers; lower it to at most 0.28, or set trainer.offload_optimizer"
    )
    assert checked_config(TrainConfig(), overrides(good, **changes, trainer__offload_optimizer=True), settings)
    # Without the driver's word nothing is judged.
    monkeypatch.setattr("drgrpo.preflight.smallest_device", lambda _: None)
    assert checked_config(TrainConfig(), overrides(good, **changes), settings)


def test_environment_origin_and_configuration_are_judged_together(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("ROOT", str(tmp_path / "root")),
        ("DEVICE", "tpu"),
        ("NUM_THREADS", "-1"),
        ("MLFLOW_TRACKING_URI", "x"),
    ):
        monkeypatch.setenv(f"DRGRPO_{name}", value)
    with pytest.raises(ConfigError) as caught:
        checked_run(TrainConfig(), overrides(good, model__path="/no/model"), "nobody", own_id="")
    fields = [mistake.field for mistake in caught.value.mistakes]
    assert fields == ["DRGRPO_DEVICE", "DRGRPO_NUM_THREADS", "resume_from", "model.path", "DRGRPO_MLFLOW_TRACKING_URI"]
    # A variable of no known name may have been meant for any: neither runs nor MLflow are looked for.
    monkeypatch.setenv("DRGRPO_RUN_DIR", str(tmp_path / "runs"))
    with pytest.raises(ConfigError) as caught:
        checked_run(TrainConfig(), overrides(good), "nobody", own_id="")
    fields = [mistake.field for mistake in caught.value.mistakes]
    assert fields == ["DRGRPO_RUN_DIR", "DRGRPO_DEVICE", "DRGRPO_NUM_THREADS"]
    assert not (tmp_path / "root").exists()


def test_what_keeps_a_run_from_going_on_is_told_with_the_rest(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRGRPO_ROOT", str(tmp_path))
    monkeypatch.setenv("DRGRPO_DEVICE", "cpu")
    directory = tmp_path / ".drgrpo" / "runs" / "earlier"
    directory.mkdir(parents=True)
    write_description(directory, Description(apply_overrides({}, overrides(good)), ""))
    with hold_output_directory(directory), pytest.raises(ConfigError) as caught:
        checked_run(TrainConfig(), overrides(good, data__eval="/no/eval", optimizer__lr=1e-5), "earlier", own_id="")
    told = {mistake.field: str(mistake) for mistake in caught.value.mistakes}
    assert list(told) == ["data.eval", "optimizer.lr", "output directory"]
    assert "the run was started with 1e-06" in told["optimizer.lr"] and "in use" in told["output directory"]
    _, settings, origin = checked_run(TrainConfig(), overrides(good), "earlier", own_id="")
    assert origin == Origin("earlier") and settings.root == tmp_path


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
