"""A checkpoint becomes a model directory: which one is meant, what lies in it, and what is refused."""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from drgrpo import checkpoints
from drgrpo.checkpoints import checkpoint_path
from drgrpo.config.errors import ConfigError, Mistake
from drgrpo.config.overrides import load_config
from drgrpo.description import Description, write_description
from drgrpo.models import inspect_model
from drgrpo.settings import Settings, resolved
from drgrpo.stored_policy import stored_policy
from tests.tiny_model import build_tiny_model

SHARDS = {"weights-00001.safetensors": ("a", "b"), "weights-00002.safetensors": ("c",)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, whose config has the older name of the dtype too."""
    path = build_tiny_model(tmp_path_factory.mktemp("model"))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"torch_dtype": "float32"}))
    return path


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return resolved(Settings(root=tmp_path))


def run(settings: Settings, model: Path, run_id: str = "run-1", steps: tuple[int, ...] = (1, 2, 10)) -> Path:
    """The directory of a run in bfloat16 with checkpoints whose weights hold their step."""
    directory = settings.runs_dir / run_id
    (directory / "steps").mkdir(parents=True)
    write_description(directory, Description(load_config({}, {"model.path": str(model)}), ""))
    for step in steps:
        path = checkpoint_path(directory / "checkpoints", step)
        partial = checkpoints.begin(path)
        files = {"state.json": checkpoints.write_json(partial / "state.json", {"step": step})}
        moments = {"exp_avg-00001.safetensors": ("a",)}
        for file, names in {**SHARDS, **moments}.items():
            tensors = {name: np.full((2, 3), step, np.float32) for name in names}
            files[file] = checkpoints.write_tensors(partial / file, tensors)
        checkpoints.publish(partial, path, files)
    return directory


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def mistake(text: str, settings: Settings) -> Mistake:
    """What is told of a wrong `checkpoint`, after seeing that nothing was made."""
    with pytest.raises(ConfigError) as caught:
        stored_policy(text, settings)
    assert not list(settings.cache_dir.glob("models/*"))
    (told,) = caught.value.mistakes
    assert (told.field, told.value) == ("checkpoint", text)
    return told


def steps_in(directory: Path) -> set[float]:
    """The values that the weights of a model directory hold."""
    tensors = [tensor for file in directory.glob("*.safetensors") for tensor in load_file(file).values()]
    return {float(value) for tensor in tensors for value in tensor.ravel()}


def test_a_checkpoint_becomes_a_directory_with_the_models_config_and_tokenizer(settings: Settings, model: Path) -> None:
    directory = run(settings, model)
    found = stored_policy("run-1@2", settings)
    path = Path(found.path)
    assert path.parent == settings.cache_dir / "models" and path.name.startswith("run-1-000002-")
    inspect_model(str(path), revision="main", cache_dir=settings.cache_dir)
    index = json.loads((path / "model.safetensors.index.json").read_text())
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    assert index == {"metadata": {"total_size": 3 * 6 * 4}, "weight_map": {"a": first, "b": first, "c": second}}
    assert steps_in(path) == {2.0} and not (path / "state.json").exists()
    for number, file in enumerate(SHARDS, start=1):
        stored = directory / "checkpoints" / "step-000002" / file
        assert os.path.samefile(stored, path / f"model-{number:05d}-of-00002.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (path / name).read_bytes() == (model / name).read_bytes()


def test_the_dtype_is_the_runs(settings: Settings, model: Path) -> None:
    run(settings, model)
    found = stored_policy("run-1", settings)
    assert found.dtype == "bfloat16"
    before = json.loads((model / "config.json").read_text())
    expected = before | {"dtype": "bfloat16", "torch_dtype": "bfloat16"}
    assert before["dtype"] == before["torch_dtype"] == "float32"
    assert json.loads((Path(found.path) / "config.json").read_text()) == expected


def test_a_run_alone_means_its_newest_whole_checkpoint(
    settings: Settings, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = run(settings, model)
    assert steps_in(Path(stored_policy("run-1", settings).path)) == {10.0}
    damage(checkpoint_path(directory / "checkpoints", 10) / "weights-00002.safetensors")
    with caplog.at_level(logging.WARNING, logger="drgrpo.stored_policy"):
        assert steps_in(Path(stored_policy("run-1", settings).path)) == {2.0}
    assert "weights-00002.safetensors is corrupt" in caplog.text


def test_a_directory_is_made_once_and_another_one_for_what_changed(settings: Settings, model: Path) -> None:
    copy = Path(shutil.copytree(model, settings.root / "copy"))
    directory = run(settings, copy)
    first = Path(stored_policy("run-1@2", settings).path)
    made = first.stat().st_ino
    assert Path(stored_policy("run-1@2", settings).path) == first and first.stat().st_ino == made
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    second = Path(stored_policy("run-1@2", settings).path)
    assert second != first and (second / "chat_template.jinja").read_text() == "{{ messages }}"
    shutil.rmtree(directory / "checkpoints")
    assert steps_in(first) == steps_in(second) == {2.0}


def test_shards_are_copied_where_they_cannot_be_linked(
    settings: Settings, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(settings, model)

    def refuse(*_: Any) -> None:
        raise OSError("other device")

    monkeypatch.setattr(os, "link", refuse)
    path = Path(stored_policy("run-1@1", settings).path)
    assert steps_in(path) == {1.0} and {file.stat().st_nlink for file in path.glob("*.safetensors")} == {1}


def test_what_a_crash_left_half_made_is_made_again(
    settings: Settings, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(settings, model)
    with monkeypatch.context() as patch:
        patch.setattr("drgrpo.checkpoints.model._link_weights", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stored_policy("run-1@1", settings)
    path = Path(stored_policy("run-1@1", settings).path)
    assert steps_in(path) == {1.0}
    assert [other.name for other in path.parent.iterdir() if not other.name.endswith(".lock")] == [path.name]


def test_a_step_without_a_checkpoint_lists_those_that_there_are(settings: Settings, model: Path) -> None:
    run(settings, model)
    told = mistake("run-1@3", settings)
    assert told.problem.startswith("no whole checkpoint of step 3") and told.remedy == "there are: 1, 2, 10"


def test_a_corrupt_step_is_refused_and_the_others_are_listed(settings: Settings, model: Path) -> None:
    directory = run(settings, model)
    damage(checkpoint_path(directory / "checkpoints", 2) / "weights-00001.safetensors")
    told = mistake("run-1@2", settings)
    assert "weights-00001.safetensors is corrupt" in told.problem and told.remedy == "there are: 1, 10"


def test_a_run_without_a_whole_checkpoint_says_how_one_is_saved(settings: Settings, model: Path) -> None:
    directory = run(settings, model, steps=(1,))
    damage(checkpoint_path(directory / "checkpoints", 1) / "state.json")
    told = mistake("run-1", settings)
    assert "has no whole checkpoint; " in told.problem and "state.json is corrupt" in told.problem
    assert "checkpoint.every_steps" in told.remedy
    run(settings, model, "run-2", steps=())
    assert mistake("run-2", settings).problem == "the run has no whole checkpoint"
    assert "checkpoint.every_steps" in mistake("run-2@4", settings).remedy


def test_an_unknown_run_lists_the_newest_that_trained(settings: Settings, model: Path) -> None:
    assert mistake("run-1", settings).remedy == f"there is none in {settings.runs_dir}; train one first"
    for number in range(1, 8):
        directory = run(settings, model, f"run-{number}", steps=())
        os.utime(directory / "steps", (number, number))
    (settings.runs_dir / "evaluation").mkdir()
    told = mistake("run-9@2", settings)
    assert told.problem == f"there is no run in {settings.runs_dir / 'run-9'}"
    assert told.remedy.endswith("the newest are: run-7, run-6, run-5, run-4, run-3")


@pytest.mark.parametrize(("text", "problem"), [("run-1@two", "not of the form"), ("../run-1", "not the id of a run")])
def test_what_names_no_checkpoint_is_refused(settings: Settings, model: Path, text: str, problem: str) -> None:
    run(settings, model)
    assert problem in mistake(text, settings).problem


def test_a_run_whose_model_is_gone_is_refused(settings: Settings, model: Path) -> None:
    copy = Path(shutil.copytree(model, settings.root / "copy"))
    run(settings, copy)
    shutil.rmtree(copy)
    told = mistake("run-1@1", settings)
    assert f"{str(copy)!r}: no such directory" in told.problem and "see that they are there" in told.remedy
