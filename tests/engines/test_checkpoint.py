"""Training goes on from a checkpoint as if it had never stopped: real ZeRO-3 ranks, a process group per phase."""

import json
import multiprocessing
import os
import random
import socket
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from drgrpo import checkpoints
from drgrpo.config import TrainConfig
from drgrpo.tables import TableRef, write_table
from tests.tiny_model import build_tiny_model

pytestmark = pytest.mark.engine

STATE = {"run_id": "r", "config_digest": "c", "tables": {"0": "t0"}}
CONFIG = {
    "total_steps": 4,
    "data": {"prompts_per_step": 2, "max_prompt_tokens": 16},
    "rollout": {"group_size": 4, "max_completion_tokens": 24, "temperature": 0.7},
    "optimizer": {"lr": 1e-3, "schedule": "cosine", "warmup_steps": 2, "weight_decay": 0.01},
    "trainer": {"completions_per_update": 4, "tokens_per_microbatch": 64},
}

Phase = Callable[[Any, Path], Any]


def straight(trainer: Any, root: Path) -> None:
    """Four iterations without a break."""
    _train(trainer, root, 0, 4)
    _save(trainer, root / "straight", 3)


def saved_halfway(trainer: Any, root: Path) -> dict[str, float]:
    """Four iterations; a checkpoint after the second, during whose writing training goes on."""
    _train(trainer, root, 0, 2)
    copied = trainer.save_checkpoint(str(checkpoints.checkpoint_path(root / "half", 1)), _state(1))
    _train(trainer, root, 2, 4)
    written = trainer.wait_for_checkpoint()
    _save(trainer, root / "straight", 3)
    return copied | written


def second_half(trainer: Any, root: Path) -> dict[str, Any]:
    """Load over a trainer that has moved on and holds pending gradients, then two iterations."""
    _train(trainer, root, 3, 4)
    trainer.trainer.accumulate(_samples(root, 3), list(range(4)), {})
    before = trainer.score([([5, 6, 7], [8, 9, 10])])
    state = trainer.load_checkpoint(str(checkpoints.checkpoint_path(root / "half", 1)))
    after = trainer.score([([5, 6, 7], [8, 9, 10])])
    _save(trainer, root / "loaded", 1)
    _train(trainer, root, 2, 4)
    _save(trainer, root / "resumed", 3)
    return {"state": state, "before": before, "after": after}


def untrained(trainer: Any, root: Path) -> float:
    """A checkpoint before the first step, loaded over a trained policy, then four iterations."""
    _save(trainer, root / "start", 0)
    _train(trainer, root, 2, 4)
    trainer.load_checkpoint(str(checkpoints.checkpoint_path(root / "start", 0)))
    _train(trainer, root, 0, 4)
    _save(trainer, root / "restarted", 3)
    return 0.0


def refused(trainer: Any, root: Path) -> list[str]:
    """Corrupt and foreign checkpoints are named on every rank, and change nothing."""
    _save(trainer, root / "before", 0)
    messages = []
    for path in sorted((root / "bad").iterdir()):
        messages.append(_error(partial(trainer.load_checkpoint, str(path))))
    _save(trainer, root / "after", 0)
    return messages


def full_disk(trainer: Any, root: Path) -> list[str]:
    """One rank's disk is full: every rank learns of it at the next call, once, and the next checkpoint succeeds."""
    place = root / "disk"
    _save(trainer, place, 0)
    original = checkpoints.write_tensors
    if trainer.rank == trainer.world_size - 1:
        setattr(checkpoints, "write_tensors", _no_space)  # noqa: B010  # the type checker refuses an assignment
    trainer.save_checkpoint(str(checkpoints.checkpoint_path(place, 1)), _state(1))
    messages = [_error(trainer.wait_for_checkpoint)]
    trainer.save_checkpoint(str(checkpoints.checkpoint_path(place, 1)), _state(1))
    messages.append(_error(lambda: trainer.save_checkpoint("unused", _state(1))))
    setattr(checkpoints, "write_tensors", original)  # noqa: B010
    left = [path.name for path in place.iterdir()] if trainer.rank == 0 else []
    _save(trainer, place, 2)
    return [*messages, *left]


def _no_space(*_: Any) -> Any:
    raise OSError(28, "No space left on device")


def _error(call: Callable[[], object]) -> str:
    try:
        call()
    except checkpoints.CheckpointError as error:
        return str(error)
    return ""


def _state(step: int) -> dict[str, Any]:
    return STATE | {"step": step, "policy_version": step + 1, "optimizer_step": 2 * (step + 1)}


def _save(trainer: Any, root: Path, step: int) -> None:
    trainer.save_checkpoint(str(checkpoints.checkpoint_path(root, step)), _state(step))
    trainer.wait_for_checkpoint()


def _train(trainer: Any, root: Path, first: int, last: int) -> None:
    for step in range(first, last):
        trainer.update(TableRef(**json.loads((root / f"table-{step}.json").read_text())), step)


def _samples(root: Path, step: int) -> Any:
    from drgrpo.trainer.samples import read_samples

    return read_samples(TableRef(**json.loads((root / f"table-{step}.json").read_text())))


def _rank(phase: Phase, root: Path, rank: int, world_size: int, port: int, config: dict[str, Any], out: Any) -> None:
    try:
        from drgrpo.trainer import zero
        from drgrpo.trainer.rank import TrainerRank

        # The tiny model's tensors are all below the usual threshold; this one leaves only its norms unpartitioned.
        zero._PERSIST_SMALL = 1000
        trainer = TrainerRank(
            TrainConfig(**config), str(root / "model"), rank=rank, world_size=world_size, on_gpu=False
        )
        trainer.start("127.0.0.1", port)
        out.put((rank, phase(trainer, root), None))
    except BaseException:
        out.put((rank, None, traceback.format_exc()))
    out.close()
    out.join_thread()
    os._exit(0)


def _run(phase: Phase, root: Path, *, ranks: int, dtype: str = "float32") -> list[Any]:
    """Results of `phase` on each rank of a fresh process group."""
    config = CONFIG | {"model": {"path": str(root / "model"), "dtype": dtype}}
    config["trainer"] = {**CONFIG["trainer"], "num_ranks": ranks}  # type: ignore[dict-item]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    processes = [context.Process(target=_rank, args=(phase, root, r, ranks, port, config, out)) for r in range(ranks)]
    environment = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    os.environ.update(environment)
    for process in processes:
        process.start()
    results: dict[int, Any] = {}
    try:
        for _ in processes:
            rank, result, error = out.get(timeout=240)
            assert error is None, error
            results[rank] = result
    finally:
        for process in processes:
            process.join(5 if len(results) == ranks else 0)
            process.kill()
        for path in Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*_{port}_*"):
            path.unlink(missing_ok=True)
    return [results[rank] for rank in range(ranks)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tiny model and four iterations' tables with advantages."""
    build_tiny_model(tmp_path / "model")
    numbers = random.Random(0)
    for step in range(4):
        advantages = [numbers.choice((-0.5, 0.25, 1.0)) for _ in range(8)]
        columns: dict[str, Any] = {
            "group_id": [0] * 4 + [1] * 4,
            "prompt_ids": [[3 + step, 40, 41]] * 4 + [[3 + step, 50]] * 4,
            "completion_ids": [[numbers.randrange(3, 320) for _ in range(numbers.randrange(3, 24))] for _ in range(8)],
            "advantage": advantages,
        }
        ref = write_table(tmp_path / f"table-{step}.parquet", columns)
        reference = {"path": ref.path, "sha256": ref.sha256, "num_rows": ref.num_rows}
        (tmp_path / f"table-{step}.json").write_text(json.dumps(reference))
    return tmp_path


def _tensors(path: Path) -> Mapping[str, np.ndarray[Any, Any]]:
    """Every weight and moment of a checkpoint, by kind and name."""
    return {
        f"{kind} {name}": array
        for kind in ("weights", "exp_avg", "exp_avg_sq")
        for file in sorted(path.glob(f"{kind}-*.safetensors"))
        for name, array in load_file(file).items()
    }


def _assert_identical(first: Path, second: Path) -> None:
    left, right = _tensors(first), _tensors(second)
    assert left.keys() == right.keys() and len(left) == 3 * 20
    differing = [name for name in left if left[name].tobytes() != right[name].tobytes()]
    assert differing == []


def _distance(first: Path, second: Path) -> float:
    left, right = _tensors(first), _tensors(second)
    return max(float(np.abs(left[name] - right[name]).max()) for name in left if name.startswith("weights"))


@pytest.mark.parametrize(("ranks", "dtype"), [(1, "float32"), (2, "float32"), (1, "bfloat16"), (2, "bfloat16")])
def test_a_resumed_run_ends_with_bit_identical_weights_and_moments(root: Path, ranks: int, dtype: str) -> None:
    figures = _run(saved_halfway, root, ranks=ranks, dtype=dtype)[0]
    (result, *_) = _run(second_half, root, ranks=ranks, dtype=dtype)
    half = checkpoints.checkpoint_path(root / "half", 1)
    _assert_identical(half, checkpoints.checkpoint_path(root / "loaded", 1))
    _assert_identical(
        checkpoints.checkpoint_path(root / "straight", 3), checkpoints.checkpoint_path(root / "resumed", 3)
    )
    assert figures["checkpoint/bytes"] > 3 * 4 * 300_000
    assert result["before"] != result["after"]
    expected = {**_state(1), "adam_step": 4, "num_ranks": ranks}
    assert {key: result["state"][key] for key in expected} == expected
    assert result["state"]["config"]["optimizer"]["lr"] == 1e-3
    assert result["state"]["versions"].keys() == {"torch", "deepspeed", "transformers", "safetensors", "python"}


@pytest.mark.parametrize(("saved", "loaded"), [(2, 1), (1, 3)])
def test_another_rank_count_loads_the_same_weights_and_trains_on_alike(root: Path, saved: int, loaded: int) -> None:
    _run(saved_halfway, root, ranks=saved)
    _run(second_half, root, ranks=loaded)
    half = checkpoints.checkpoint_path(root / "half", 1)
    _assert_identical(half, checkpoints.checkpoint_path(root / "loaded", 1))
    moved = _distance(half, checkpoints.checkpoint_path(root / "resumed", 3))
    apart = _distance(
        checkpoints.checkpoint_path(root / "straight", 3), checkpoints.checkpoint_path(root / "resumed", 3)
    )
    assert moved > 1e-4
    assert apart < 2e-6


def test_a_checkpoint_of_the_untrained_policy_starts_over_bit_identically(root: Path) -> None:
    _run(straight, root, ranks=1)
    _run(untrained, root, ranks=1)
    _assert_identical(
        checkpoints.checkpoint_path(root / "straight", 3), checkpoints.checkpoint_path(root / "restarted", 3)
    )


def test_corrupt_and_foreign_checkpoints_are_refused_on_every_rank_and_change_nothing(root: Path) -> None:
    bad = root / "bad"
    _bad_checkpoint(bad, 1, {"model.norm.weight": np.zeros(128, np.float32)})
    flipped = _bad_checkpoint(bad, 2, {"model.norm.weight": np.zeros(128, np.float32)})
    shard = flipped / "weights-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    (bad / "step-000003").mkdir()
    results = _run(refused, root, ranks=2)
    for messages in results:
        assert "of another model: 19 weights tensors differ" in messages[0]
        assert "weights-00001.safetensors is corrupt" in messages[1]
        assert "not finished" in messages[2]
    _assert_identical(checkpoints.checkpoint_path(root / "before", 0), checkpoints.checkpoint_path(root / "after", 0))


def _bad_checkpoint(root: Path, step: int, weights: dict[str, Any]) -> Path:
    path = checkpoints.checkpoint_path(root, step)
    draft = checkpoints.begin(path)
    files = {"state.json": checkpoints.write_json(draft / "state.json", STATE)}
    for kind in ("weights", "exp_avg", "exp_avg_sq"):
        name = f"{kind}-00001.safetensors"
        files[name] = checkpoints.write_tensors(draft / name, weights)
    checkpoints.publish(draft, path, files)
    return path


def test_a_full_disk_on_one_rank_raises_on_all_and_spoils_neither_older_nor_later_checkpoints(root: Path) -> None:
    first, second = _run(full_disk, root, ranks=2)
    for messages in (first, second):
        assert "rank 1" in messages[0] and "No space left on device" in messages[0]
        assert messages[1] == messages[0]
    assert first[2:] == ["step-000000"]
    newest = checkpoints.newest_whole(root / "disk")
    assert newest.path == checkpoints.checkpoint_path(root / "disk", 2)
    assert newest.skipped == []
    assert checkpoints.read_whole(checkpoints.checkpoint_path(root / "disk", 0))["step"] == 0
