"""One run at a time on a GPU: the second waits for the first, and a lock ends with the process that held it."""

import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from drgrpo import device_lock
from drgrpo.device_lock import hold_device, visible_devices
from drgrpo.settings import Settings

ROOT = Path(__file__).parents[2]


def holder(folder: Path, seconds: float) -> "subprocess.Popen[str]":
    """A process that holds device 7 for a while, once it has said so."""
    code = (
        "import sys, time; from pathlib import Path; from drgrpo.device_lock import hold_device\n"
        f"with hold_device('7', Path({str(folder)!r})):\n    print('held', flush=True); time.sleep({seconds})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, umask=0o077)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_run_waits_and_is_told_for_whom(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, locked, looks = holder(tmp_path, 600), device_lock._locked, []

    def look(file: IO[str], mode: int) -> bool:
        looks.append(locked(file, mode))
        if len(looks) == 2:
            first.terminate()
        return looks[-1]

    monkeypatch.setattr(device_lock, "_locked", look)
    with caplog.at_level(logging.WARNING), hold_device("7", tmp_path):
        assert first.wait(30) == -signal.SIGTERM
    assert looks[:2] == [False, False] and looks[-1]
    assert caplog.text.count(f"waiting for GPU 7: process {first.pid} uses it") == 1


def test_the_lock_of_a_killed_run_is_free_at_once_and_other_devices_always_were(tmp_path: Path) -> None:
    first = holder(tmp_path, 600)
    with hold_device("6", tmp_path):
        first.kill()
        first.wait()
        with hold_device("7", tmp_path):
            assert (tmp_path / "drgrpo-device-7.lock").read_text() == str(os.getpid())


def test_runs_that_share_a_device_hold_it_at_once_and_one_more_or_one_alone_waits(tmp_path: Path) -> None:
    def is_free(shared_by: int) -> bool:
        code = f"with hold_device('7', Path({str(tmp_path)!r}), shared_by={shared_by}): print('held')"
        command = [
            sys.executable,
            "-c",
            f"from pathlib import Path; from drgrpo.device_lock import hold_device\n{code}",
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            assert process.stdout is not None
            told = process.stdout.readline()
            process.kill()
        return told == b"held\n"

    with hold_device("7", tmp_path, shared_by=2):
        assert is_free(2) and not is_free(1)
        with hold_device("7", tmp_path, shared_by=2):
            assert not is_free(2) and not is_free(1)
    assert is_free(1)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory such as /tmp is: everyone may write in it, and nobody remove what is another's."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o1777)
        yield Path(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_can_take_the_lock_of_a_device(folder: Path) -> None:
    first = holder(folder, 0)
    assert first.wait(30) == 0
    lock = folder / "drgrpo-device-7.lock"
    assert lock.stat().st_mode & 0o777 == 0o666
    child = os.fork()
    if child == 0:  # without an exec: a stranger may not be able to read this interpreter
        status = 1
        try:
            os.setuid(65534)
            with hold_device("7", folder):
                status = 0 if lock.read_text() == str(os.getpid()) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


INFORMATION = """Model: \t\t NVIDIA H100 80GB HBM3
GPU UUID: \t {uuid}
Bus Location: \t 0000:{bus}:00.0
Device Minor: \t {minor}
"""


@pytest.mark.parametrize(
    ("device", "uuid"),
    [
        *(("0", "GPU-ab-1"), ("GPU-ab-1", "GPU-ab-1"), ("GPU-ab", "GPU-ab-1")),
        *(("1", "GPU-cd-2"), ("GPU-cd-2", "GPU-cd-2"), ("2", "2"), ("MIG-ab-1", "MIG-ab-1")),
    ],
)
def test_index_and_uuid_of_a_device_are_one_lock(tmp_path: Path, device: str, uuid: str) -> None:
    for bus, minor, known in (("19", 1, "GPU-cd-2"), ("4f", 0, "GPU-ab-1")):
        (tmp_path / f"0000:{bus}:00.0").mkdir()
        text = INFORMATION.format(uuid=known, bus=bus, minor=minor)
        (tmp_path / f"0000:{bus}:00.0" / "information").write_text(text)
    assert device_lock.uuid(device, tmp_path) == uuid
    assert device_lock.uuid(device, tmp_path / "no driver") == device


def test_a_run_holds_its_devices_by_their_uuids_each_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device_lock, "uuid", lambda device: "GPU-ab-1" if device in ("0", "GPU-ab") else device)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-ab,0")
    with device_lock.hold_devices(Settings()):
        assert {path.name for path in tmp_path.iterdir()} == {"drgrpo-device-3.lock", "drgrpo-device-GPU-ab-1.lock"}


@pytest.mark.parametrize(("visible", "devices"), [("", []), ("-1", []), ("0", ["0"]), ("2, GPU-ab", ["2", "GPU-ab"])])
def test_the_devices_are_those_that_cuda_may_use(
    monkeypatch: pytest.MonkeyPatch, visible: str, devices: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_devices() == devices
