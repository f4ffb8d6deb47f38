"""Small files that outlive a power cut: what is synced, in which order, and what a failure leaves behind."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drgrpo.comparison.results import write_result
from drgrpo.config import TrainConfig
from drgrpo.description import Description, read_description, write_description
from drgrpo.durable import replace_file, replace_json
from drgrpo.report import write_history
from flows.recovery import Restarts


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is synced and renamed from here on."""
    log: list[str] = []

    def logged(name: str, target: Callable[..., Path]) -> None:
        real: Any = getattr(os, name)

        def operation(*args: Any) -> None:
            log.append(f"{name} {target(*args).name}")
            real(*args)

        monkeypatch.setattr(os, name, operation)

    logged("fsync", lambda descriptor: Path(os.readlink(f"/proc/self/fd/{descriptor}")))
    logged("replace", lambda _, name: Path(name))
    return log


def test_a_file_is_replaced_durably_or_stays_as_it_was(
    tmp_path: Path, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    replace_json(path, {"b": 1, "a": 2})
    assert log == ["fsync .a.json.tmp", "replace a.json", f"fsync {tmp_path.name}"]
    assert path.read_text() == '{\n "b": 1,\n "a": 2\n}\n'

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, b"new")
    assert path.read_text().startswith("{")


def test_what_a_run_needs_to_go_on_is_written_so(tmp_path: Path, log: list[str]) -> None:
    write_description(tmp_path, Description(TrainConfig(), "m"))
    write_history(tmp_path / "history.jsonl", {"step": 1, "a": 1})
    write_history(tmp_path / "history.jsonl", {"step": 2, "a": 1})
    write_history(tmp_path / "history.jsonl", {"step": 1, "a": 2})
    write_result(tmp_path / "base-1.json", {"arm": "base"})
    Restarts(1, tmp_path).__enter__()
    folder = f"fsync {tmp_path.name}"
    assert log == [
        *("fsync .run.json.tmp", "replace run.json", folder),
        *("fsync history.jsonl", folder),
        "fsync history.jsonl",
        *("fsync .history.jsonl.tmp", "replace history.jsonl", folder),
        *("fsync .base-1.json.tmp", "replace base-1.json", folder),
        *("fsync .restarts.json.tmp", "replace restarts.json", folder),
    ]


def test_the_order_of_the_reward_functions_survives_the_description(tmp_path: Path) -> None:
    config = TrainConfig.model_validate({"reward": {"functions": {"math": 1.0, "format": 0.1, "gsm8k": 0.5}}})
    write_description(tmp_path, Description(config, ""))
    found = read_description(tmp_path)
    assert found is not None and list(found.config.reward.functions) == ["math", "format", "gsm8k"]
