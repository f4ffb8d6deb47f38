"""One run at a time on a GPU: the second waits for the first, and a lock ends with the process that held it."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drgrpo.device_lock import hold_device, visible_devices

ROOT = Path(__file__).parents[2]


def holder(folder: Path, seconds: float) -> "subprocess.Popen[str]":
    """A process that holds device 7 for a while, once it has said so."""
    code = (
        "import sys, time; from pathlib import Path; from drgrpo.device_lock import hold_device\n"
        f"with hold_device('7', Path({str(folder)!r})):\n    print('held', flush=True); time.sleep({seconds})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_run_waits_and_is_told_for_whom(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, started = holder(tmp_path, 2), time.monotonic()
    with caplog.at_level(logging.WARNING), hold_device("7", tmp_path):
        assert first.wait(10) == 0 and time.monotonic() - started > 1
    assert f"waiting for GPU 7: process {first.pid} uses it" in caplog.text


def test_the_lock_of_a_killed_run_is_free_at_once_and_other_devices_always_were(tmp_path: Path) -> None:
    first = holder(tmp_path, 600)
    with hold_device("6", tmp_path):
        first.kill()
        first.wait()
        with hold_device("7", tmp_path):
            assert (tmp_path / "drgrpo-device-7.lock").read_text() == str(os.getpid())


@pytest.mark.parametrize(("visible", "devices"), [("", []), ("-1", []), ("0", ["0"]), ("2, GPU-ab", ["2", "GPU-ab"])])
def test_the_devices_are_those_that_cuda_may_use(
    monkeypatch: pytest.MonkeyPatch, visible: str, devices: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_devices() == devices
