"""What a killed process leaves is told by the id in its name, and removed when the next run starts."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from drgrpo.cluster import runtime
from drgrpo.leftovers import SHARED_MEMORY, orphans, reduce_buffer, staging_prefix
from drgrpo.weight_sync import sender as sender_module
from drgrpo.weight_sync.sender import Sender

ROOT = Path(__file__).parents[2]


@pytest.fixture
def dead() -> int:
    """Id of a process that is gone."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_only_names_of_ours_whose_process_is_gone_are_orphans(tmp_path: Path, dead: int) -> None:
    alive, uid = os.getpid(), os.getuid()
    names = {
        f"drgrpo-staging-{dead}-ab": True,
        f"deepspeed_allreduce_buffer_{uid}_drgrpo-{dead}_29500_1": True,
        staging_prefix() + "ab": False,
        reduce_buffer(alive, 29500, 0).name: False,
        f"deepspeed_allreduce_buffer_{uid}_127.0.0.1_{dead}_0": False,  # of another program
        f"torch_{dead}_1": False,
        f"my-drgrpo-staging-{dead}-ab": False,
    }
    for name in names:
        (tmp_path / name).touch()
    assert {path.name for path in orphans(tmp_path)} == {name for name, is_orphan in names.items() if is_orphan}


def test_starting_ray_removes_what_killed_runs_left_and_keeps_what_their_engines_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dead: int
) -> None:
    run, temporary = tmp_path / "run", tmp_path / "tmp"
    run.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    left, gone, own = (temporary / f"drgrpo-ray-{pid}-x" for pid in (dead, f"{dead}-2", os.getpid()))
    for directory, logs in ((left, run / "logs"), (gone, tmp_path / "deleted" / "logs"), (own, run / "logs")):
        (directory / "session_2026" / "logs").mkdir(parents=True)
        (directory / "session_2026" / "logs" / "worker-1.err").write_text("Timeout (2:00:00)!")
        (directory / "run-logs").symlink_to(logs)
    buffer = SHARED_MEMORY / f"drgrpo-staging-{dead}-test"
    buffer.touch()
    started: list[dict[str, Any]] = []
    monkeypatch.setattr(runtime.ray, "init", lambda **options: started.append(options))
    runtime.start_ray(runtime.Settings(), run / "logs")
    assert not left.exists() and not gone.exists() and not buffer.exists() and own.exists()
    assert (run / "logs" / "worker-1.err").read_text() == "Timeout (2:00:00)!"
    assert not (tmp_path / "deleted").exists()
    assert (Path(started[0]["_temp_dir"]) / "run-logs").readlink() == run / "logs"


class Tied(nn.Module):
    """A policy of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))

    def checkpoint_name(self, name: str) -> str:
        return name


class Engine:
    module = Tied()


@pytest.mark.parametrize("dies", [True, False])
def test_the_staging_buffer_has_no_name_once_the_sampler_has_mapped_it_or_is_dead(
    monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    seen: list[Path] = []

    class Sampler:
        def open_staging(self, handle: dict[str, Any]) -> None:
            seen.append(Path(handle["path"]))
            assert seen[0].exists() and seen[0].name.startswith(f"drgrpo-staging-{os.getpid()}-")
            if dies:
                raise ConnectionError("the sampler died")

    monkeypatch.setattr(sender_module, "_BUCKET_BYTES", {"cpu": 1024})
    if dies:
        with pytest.raises(ConnectionError, match="the sampler died"):
            Sender(Engine(), Sampler(), torch.device("cpu"))  # type: ignore[arg-type]
    else:
        Sender(Engine(), Sampler(), torch.device("cpu"))  # type: ignore[arg-type]
    assert not seen[0].exists()


HANGING = """
import sys, time
from drgrpo.cluster import watchdog
watchdog._FAREWELL_S = float(sys.argv[1])
with watchdog.time_limit(0.5):
    time.sleep(2)
print("came back")
"""


@pytest.mark.parametrize(("farewell_s", "status", "said"), [(0.5, -14, ""), (30.0, 0, "came back\n")])
def test_a_call_over_its_limit_prints_its_stacks_and_stays_a_while_before_it_ends(
    farewell_s: float, status: int, said: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGING, str(farewell_s)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (status, said)
    assert "Timeout (0:00:00.500000)!" in done.stderr and "in <module>" in done.stderr


def test_a_call_within_its_limit_leaves_no_alarm() -> None:
    code = HANGING.replace("time.sleep(2)", "pass") + "time.sleep(1.5)"
    done = subprocess.run([sys.executable, "-c", code, "0.5"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "came back\n", "")
