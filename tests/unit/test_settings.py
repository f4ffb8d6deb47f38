"""Settings of the machine, read from the environment."""

import os
from pathlib import Path

import pytest

from drgrpo.config.errors import ConfigError
from drgrpo.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith("DRGRPO_") or name == "MLFLOW_TRACKING_URI":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_the_defaults_lie_below_the_current_directory(tmp_path):
    settings = load_settings()
    assert settings.runs_dir == tmp_path / ".drgrpo/runs"
    assert settings.cache_dir == tmp_path / ".drgrpo/cache"
    assert settings.mlflow_tracking_uri == f"sqlite:///{tmp_path}/.drgrpo/mlflow.db"
    assert settings.ray_address == "" and settings.device == "auto"


def test_the_mlflow_store_is_ours_then_mlflows_then_sqlite(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5001")
    assert load_settings().mlflow_tracking_uri == "http://127.0.0.1:5001"
    monkeypatch.setenv("DRGRPO_MLFLOW_TRACKING_URI", "http://127.0.0.1:5002")
    assert load_settings().mlflow_tracking_uri == "http://127.0.0.1:5002"


def test_relative_directories_start_from_the_root_and_absolute_ones_stay(monkeypatch, tmp_path):
    monkeypatch.setenv("DRGRPO_ROOT", str(tmp_path / "data"))
    monkeypatch.setenv("DRGRPO_CACHE_DIR", "/var/cache/drgrpo")
    settings = load_settings()
    assert settings.runs_dir == tmp_path / "data/.drgrpo/runs"
    assert settings.cache_dir == Path("/var/cache/drgrpo")


def test_values_are_read_and_bounded(monkeypatch):
    monkeypatch.setenv("DRGRPO_NUM_THREADS", "2")
    monkeypatch.setenv("DRGRPO_CPU_KVCACHE_GIB", "0.5")
    settings = load_settings()
    assert (settings.num_threads, settings.cpu_kvcache_gib) == (2, 0.5)
    monkeypatch.setenv("DRGRPO_NUM_THREADS", "-1")
    monkeypatch.setenv("DRGRPO_DEVICE", "tpu")
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert {m.field: m.value for m in caught.value.mistakes} == {"DRGRPO_NUM_THREADS": "-1", "DRGRPO_DEVICE": "tpu"}
    assert "`auto` or `cpu` or `cuda`" in str(caught.value)


def test_an_empty_variable_is_not_set(monkeypatch):
    monkeypatch.setenv("DRGRPO_NUM_THREADS", "")
    assert load_settings().num_threads == 0


def test_every_unknown_variable_is_named_with_the_nearest(monkeypatch):
    monkeypatch.setenv("DRGRPO_RUN_DIR", "x")
    monkeypatch.setenv("DRGRPO_ZZZ", "y")
    with pytest.raises(ConfigError) as caught:
        load_settings()
    remedies = {mistake.field: mistake.remedy for mistake in caught.value.mistakes}
    assert remedies["DRGRPO_RUN_DIR"] == "did you mean `DRGRPO_RUNS_DIR`?"
    assert "DRGRPO_DEVICE" in remedies["DRGRPO_ZZZ"]


@pytest.mark.parametrize("name", ["DRGRPO_OPTIMIZER__LR", "DRGRPO_OPTIMIZER_LR"])
def test_a_hyperparameter_in_the_environment_is_refused(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    with pytest.raises(ConfigError, match=r"never alters a hyperparameter: set `optimizer\.lr`"):
        load_settings()


def test_a_token_is_never_shown(monkeypatch):
    monkeypatch.setenv("DRGRPO_HUB_TOKEN", "hf_secret")
    settings = load_settings()
    assert settings.hub_token.get_secret_value() == "hf_secret"
    assert "hf_secret" not in repr(settings)
    monkeypatch.setenv("DRGRPO_HUB_TOKE", "hf_secret")
    monkeypatch.setenv("DRGRPO_TOKEN", "hf_secret")
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert "hf_secret" not in str(caught.value)


def test_every_setting_is_described():
    assert all(info.description for info in Settings.model_fields.values())
