"""A checkpoint is whole or ignored: crashes at every operation and byte, corruption, a full disk, pruning."""

import builtins
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from drgrpo.checkpoints import (
    CheckpointError,
    begin,
    best_checkpoint,
    checkpoint_path,
    discard,
    discard_after,
    find_checkpoints,
    mark_best,
    newest_whole,
    prune,
    publish,
    read_header,
    read_manifest,
    read_whole,
    tensor_shapes,
    write_json,
    write_tensors,
)

SHAPES = {"model.embed.weight": (4, 3), "model.norm.weight": (3,)}


class Crash(BaseException):
    """Stands for the process dying: nothing in the library may swallow it."""


def arrays(step: int) -> dict[str, Any]:
    """Weights that tell which step wrote them."""
    return {name: np.full(shape, step, np.float32) for name, shape in SHAPES.items()}


def save(root: Path, step: int, digest: str = "c", note: str = "") -> Path:
    """Write a checkpoint the way the trainer does."""
    path = checkpoint_path(root, step)
    partial = begin(path)
    files = {"state.json": write_json(partial / "state.json", {"step": step, "config_digest": digest, "note": note})}
    for kind in ("weights", "exp_avg"):
        name = f"{kind}-00001.safetensors"
        files[name] = write_tensors(partial / name, arrays(step))
    publish(partial, path, files)
    return path


def steps(root: Path) -> list[str]:
    """Names of everything under the root."""
    return sorted(path.name for path in root.iterdir())


def test_tensors_read_back_with_the_library_of_the_format(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.array(2.5, np.float32),
        "ü": np.arange(5, dtype=np.uint8),
        "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    }
    record = write_tensors(tmp_path / "t.safetensors", tensors)
    loaded = load_file(tmp_path / "t.safetensors")
    assert {name: array.tolist() for name, array in loaded.items()} == {k: v.tolist() for k, v in tensors.items()}
    data = (tmp_path / "t.safetensors").read_bytes()
    assert (record.nbytes, record.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert read_header(tmp_path / "t.safetensors")["turned"].shape == (3, 2)


def test_the_newest_whole_checkpoint_is_found_with_its_state(tmp_path: Path) -> None:
    for step in (2, 12, 9):
        save(tmp_path / "checkpoints", step)
    path, state, skipped = newest_whole(tmp_path / "checkpoints")
    assert path == tmp_path / "checkpoints" / "step-000012"
    assert state == {"step": 12, "config_digest": "c", "note": ""}
    assert skipped == []
    assert tensor_shapes(path, "exp_avg") == SHAPES
    assert load_file(path / "weights-00001.safetensors")["model.norm.weight"].tolist() == [12.0, 12.0, 12.0]


def test_a_root_that_does_not_exist_has_no_checkpoint(tmp_path: Path) -> None:
    assert newest_whole(tmp_path / "none") == (None, {}, [])
    assert find_checkpoints(tmp_path / "none") == []


def test_a_fork_goes_back_to_the_step_asked_for(tmp_path: Path) -> None:
    for step in (1, 3, 5):
        save(tmp_path, step)
    assert newest_whole(tmp_path, at_most=4).path == checkpoint_path(tmp_path, 3)


def test_steps_beyond_six_digits_still_sort_by_number(tmp_path: Path) -> None:
    save(tmp_path, 999_999)
    save(tmp_path, 1_000_000)
    assert newest_whole(tmp_path).path == tmp_path / "step-1000000"


def test_other_names_are_neither_found_nor_written(tmp_path: Path) -> None:
    for name in ("step-1", "step-00000x", "step-000001.partial", "step-000001.pruned", "steps"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-000003").write_text("a file")
    assert find_checkpoints(tmp_path) == []
    with pytest.raises(ValueError, match="not named like a checkpoint"):
        begin(tmp_path / "latest")


def damage_truncate(path: Path) -> str:
    file = path / "exp_avg-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    return "exp_avg-00001.safetensors has"


def damage_flip(path: Path) -> str:
    file = path / "weights-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    return "weights-00001.safetensors is corrupt"


def damage_state(path: Path) -> str:
    file = path / "state.json"
    file.write_text(file.read_text().replace('"step": 2', '"step": 7'))
    return "state.json is corrupt"


def damage_missing_file(path: Path) -> str:
    (path / "weights-00001.safetensors").unlink()
    return "weights-00001.safetensors cannot be read"


def damage_no_manifest(path: Path) -> str:
    (path / "manifest.json").unlink()
    return "no manifest.json, so it was not finished"


def damage_manifest(path: Path) -> str:
    (path / "manifest.json").write_text('{"format": 1, "files": []}')
    return "unreadable manifest.json"


def damage_escape(path: Path) -> str:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../../etc/passwd"] = {"bytes": 1, "sha256": ""}
    (path / "manifest.json").write_text(json.dumps(manifest))
    return "names a file outside of it"


def damage_format(path: Path) -> str:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"format": 2}))
    return "format 2, this version reads 1"


DAMAGES: list[Callable[[Path], str]] = [
    damage_truncate,
    damage_flip,
    damage_state,
    damage_missing_file,
    damage_no_manifest,
    damage_manifest,
    damage_escape,
    damage_format,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_skipped_for_the_one_before(
    tmp_path: Path, damage: Callable[[Path], str]
) -> None:
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    reason = damage(newer)
    path, state, skipped = newest_whole(tmp_path)
    assert (path, state["step"]) == (older, 1)
    (message,) = skipped
    assert str(newer) in message and reason in message


def test_every_truncation_and_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    for file in sorted(path.iterdir()):
        whole = file.read_bytes()
        for index in range(len(whole.rstrip())):
            file.write_bytes(whole[:index])
            assert newest_whole(tmp_path).path is None, (file.name, index)
        for index in range(len(whole)):
            file.write_bytes(whole[:index] + bytes([whole[index] ^ 16]) + whole[index + 1 :])
            assert newest_whole(tmp_path).path is None, (file.name, index)
        file.write_bytes(whole)
    assert newest_whole(tmp_path).path == path


def test_a_checkpoint_of_another_configuration_or_model_is_skipped_with_the_reason(tmp_path: Path) -> None:
    ours, other = save(tmp_path, 1), save(tmp_path, 2, digest="d")
    found = newest_whole(tmp_path, config_digests={"c"}, shapes=SHAPES)
    assert found.path == ours
    assert found.skipped == [f"{other}: of another configuration: digest d, expected c"]
    found = newest_whole(tmp_path, shapes={"model.embed.weight": [4, 3], "model.norm.weight": [5]})
    assert found.path is None
    assert found.skipped[0] == (
        f"{other}: of another model: 1 weights tensors differ, model.norm.weight is (3,), expected (5,)"
    )
    assert (
        "lm_head.weight is absent, expected (9,)"
        in newest_whole(tmp_path, shapes=SHAPES | {"lm_head.weight": (9,)}).skipped[0]
    )


class Disk:
    """Counts the operations that change the disk and fails at the `fail_at`th, halfway through if it is a write."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_at: int, failure: Callable[[], BaseException]) -> None:
        self.operations: list[tuple[str, str]] = []
        self.fail_at, self.failure = fail_at, failure
        for owner, name in ((os, "replace"), (os, "rename"), (os, "fsync"), (os, "mkdir"), (shutil, "rmtree")):
            monkeypatch.setattr(owner, name, self._counted(name, getattr(owner, name)))
        monkeypatch.setattr(Path, "open", lambda path, *args, **kwargs: self._open(path, *args, **kwargs))

    def _counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any, **kwargs: Any) -> Any:
            self._count(name, str(args[0]))
            return real(*args, **kwargs)

        return operation

    def _count(self, name: str, target: str) -> None:
        self.operations.append((name, target))
        if len(self.operations) == self.fail_at:
            raise self.failure()

    def _open(self, path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = builtins.open(path, mode, *args, **kwargs)  # noqa: SIM115
        if "w" not in mode:
            return file
        return _CountedFile(file, lambda: self._count("write", str(path)))


class _CountedFile:
    """A file of which a failing write leaves half of the bytes behind."""

    def __init__(self, file: Any, count: Callable[[], None]) -> None:
        self.file, self.count = file, count

    def write(self, chunk: bytes) -> None:
        try:
            self.count()
        except BaseException:
            self.file.write(chunk[: len(chunk) // 2])
            self.file.flush()
            raise
        self.file.write(chunk)

    def __enter__(self) -> "_CountedFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def fail_at_each_operation(
    work: Callable[[], object], prepare: Callable[[], None], failure: Callable[[], BaseException]
) -> Iterator[tuple[list[tuple[str, str]], bool]]:
    """Run `work` again and again, failing one operation later each time; the last run does not fail."""
    for fail_at in range(1, 1000):
        prepare()
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, fail_at, failure)
            try:
                work()
            except (Crash, OSError):
                failed = len(disk.operations) == fail_at
                assert failed, disk.operations
            else:
                failed = False
        yield disk.operations, failed
        if not failed:
            return


def test_a_crash_at_any_operation_leaves_the_previous_checkpoint_whole_and_the_run_can_save_again(
    tmp_path: Path,
) -> None:
    root = tmp_path / "checkpoints"

    def prepare() -> None:
        shutil.rmtree(root, ignore_errors=True)
        save(root, 1)

    found: list[int] = []
    for _ in fail_at_each_operation(lambda: save(root, 2), prepare, Crash):
        path, state, _ = newest_whole(root)
        assert path is not None
        assert (path, load_file(path / "weights-00001.safetensors")["model.norm.weight"][0]) == (
            checkpoint_path(root, state["step"]),
            state["step"],
        )
        found.append(state["step"])
        save(root, 2)
        assert newest_whole(root) == (checkpoint_path(root, 2), {"step": 2, "config_digest": "c", "note": ""}, [])
        assert steps(root) == ["step-000001", "step-000002"]
    assert found == sorted(found) and found.count(1) > 15
    assert found.count(2) <= 3  # the directory's last sync, the cleaning up, the undisturbed run


def test_a_crash_while_a_step_is_saved_again_leaves_one_of_its_two_versions(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"

    def prepare() -> None:
        shutil.rmtree(root, ignore_errors=True)
        save(root, 2, note="old")

    notes = []
    for _ in fail_at_each_operation(lambda: save(root, 2, note="new"), prepare, Crash):
        notes.append(newest_whole(root).state["note"])
        prune(root, 1)
        assert newest_whole(root).state["note"] == notes[-1]
        save(root, 2, note="newest")
        assert newest_whole(root).state["note"] == "newest"
        assert steps(root) == ["step-000002"]
    assert notes == sorted(notes, reverse=True)
    assert notes[-1] == "new" and len(notes) > 15


def test_a_full_disk_raises_leaves_the_previous_checkpoint_and_gives_its_space_back(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"

    def prepare() -> None:
        shutil.rmtree(root, ignore_errors=True)
        save(root, 1)

    def full() -> OSError:
        return OSError(errno.ENOSPC, "No space left on device")

    for _, failed in fail_at_each_operation(lambda: save(root, 2), prepare, full):
        whole = newest_whole(root).path
        discard(checkpoint_path(root, 2))
        assert newest_whole(root) == (whole, newest_whole(root).state, [])
        assert len(steps(root)) == (2 if whole == checkpoint_path(root, 2) else 1)
        assert failed or whole == checkpoint_path(root, 2)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_really_full_file_system_raises_and_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not permitted")
    try:
        first = save(tmp_path, 1)
        partial = begin(checkpoint_path(tmp_path, 2))
        with pytest.raises(OSError, match="No space left"):
            write_tensors(partial / "weights-00001.safetensors", {"w": np.zeros(1 << 15, np.float32)})
        discard(checkpoint_path(tmp_path, 2))
        assert newest_whole(tmp_path) == (first, read_whole(first), [])
        assert newest_whole(tmp_path).path == first
        assert save(tmp_path, 3) == newest_whole(tmp_path).path
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_every_file_is_synced_before_its_name_counts_and_every_directory_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []

    def logged(name: str, real: Callable[..., None], target: Callable[..., Path]) -> None:
        def operation(*args: Any) -> None:
            log.append(f"{name} {target(*args).name}")
            real(*args)

        monkeypatch.setattr(os, real.__name__, operation)

    logged("sync", os.fsync, lambda descriptor: Path(os.readlink(f"/proc/self/fd/{descriptor}")))
    logged("rename", os.rename, lambda _, name: Path(name))
    logged("rename", os.replace, lambda _, name: Path(name))
    save(tmp_path, 7)
    assert log == [
        "sync state.json",
        "sync weights-00001.safetensors",
        "sync exp_avg-00001.safetensors",
        "sync step-000007.partial",
        "rename step-000007",
        f"sync {tmp_path.name}",
        "sync .manifest.json.tmp",
        "rename manifest.json",
        "sync step-000007",
    ]


def test_pruning_keeps_the_last_few_and_the_best(tmp_path: Path) -> None:
    for step in range(1, 7):
        save(tmp_path, step)
    assert mark_best(tmp_path, 2, "accuracy", 0.5)
    assert prune(tmp_path, 2) == [checkpoint_path(tmp_path, step) for step in (4, 3, 1)]
    assert steps(tmp_path) == ["best.json", "step-000002", "step-000005", "step-000006"]
    assert prune(tmp_path, 1, keep_best=False) == [checkpoint_path(tmp_path, step) for step in (5, 2)]
    assert best_checkpoint(tmp_path) is None
    with pytest.raises(ValueError, match="always kept"):
        prune(tmp_path, 0)


def test_pruning_counts_only_whole_checkpoints_and_spares_one_that_may_be_about_to_become_whole(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step)
    (checkpoint_path(tmp_path, 5) / "manifest.json").unlink()
    damage_truncate(checkpoint_path(tmp_path, 2))
    (tmp_path / "step-000006.partial").mkdir()
    prune(tmp_path, 2)
    assert steps(tmp_path) == ["step-000003", "step-000004", "step-000005", "step-000006.partial"]


def test_a_crash_while_pruning_never_costs_a_checkpoint_that_was_to_stay(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"

    def prepare() -> None:
        shutil.rmtree(root, ignore_errors=True)
        for step in (1, 2, 3, 4):
            save(root, step)
        mark_best(root, 1, "accuracy", 0.5)

    for _ in fail_at_each_operation(lambda: prune(root, 1), prepare, Crash):
        assert newest_whole(root) == (checkpoint_path(root, 4), read_whole(checkpoint_path(root, 4)), [])
        assert read_whole(checkpoint_path(root, 1))["step"] == 1
        prune(root, 1)
        save(root, 5)
        assert steps(root) == ["best.json", "step-000001", "step-000004", "step-000005"]


def test_the_best_is_the_best_whole_one_by_its_metric(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    assert mark_best(tmp_path, 1, "accuracy", 0.25)
    assert not mark_best(tmp_path, 2, "accuracy", 0.25)
    assert mark_best(tmp_path, 2, "accuracy", 0.5)
    assert not mark_best(tmp_path, 4, "accuracy", 0.9)
    assert not mark_best(tmp_path, 3, "accuracy", float("nan"))
    assert best_checkpoint(tmp_path) == (checkpoint_path(tmp_path, 2), "accuracy", 0.5)
    assert mark_best(tmp_path, 3, "loss", 0.9, higher_is_better=False)
    assert not mark_best(tmp_path, 2, "loss", 1.0, higher_is_better=False)
    assert mark_best(tmp_path, 1, "loss", 0.8, higher_is_better=False)
    damage_no_manifest(checkpoint_path(tmp_path, 1))
    assert best_checkpoint(tmp_path) is None
    assert mark_best(tmp_path, 2, "loss", 2.0, higher_is_better=False)


def test_a_rollback_leaves_nothing_after_its_step(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    assert discard_after(tmp_path, 2) == [checkpoint_path(tmp_path, 4), checkpoint_path(tmp_path, 3)]
    assert newest_whole(tmp_path).path == checkpoint_path(tmp_path, 2)


def test_state_that_json_cannot_hold_exactly_is_refused(tmp_path: Path) -> None:
    for value in (float("nan"), {1, 2}):
        with pytest.raises((ValueError, TypeError)):
            write_json(tmp_path / "state.json", {"value": value})


def test_reading_a_file_that_is_no_tensor_file_names_it(tmp_path: Path) -> None:
    for content in (b"", b"\xff" * 20, b"\x02" + bytes(7) + b"[]", b"\x10" + bytes(7) + b"{"):
        (tmp_path / "weights-00001.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"weights-00001.safetensors is no safetensors file"):
            read_header(tmp_path / "weights-00001.safetensors")


def test_the_manifest_lists_every_other_file(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    assert sorted([*read_manifest(path), "manifest.json"]) == steps(path)


def test_the_flow_process_gets_no_torch_with_it() -> None:
    code = "import sys, drgrpo.checkpoints; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
