"""A checkpoint's weights as a Hugging Face directory, beside the config and tokenizer of the model that was trained."""

import fcntl
import hashlib
import json
import math
import shutil
from pathlib import Path

from drgrpo.checkpoints.directory import MANIFEST, read_manifest
from drgrpo.checkpoints.files import link_file, read_header
from drgrpo.checkpoints.newest import shards

_DESCRIPTION = {".json", ".txt", ".jinja", ".model"}
_NUM_BYTES = 4  # of a float32


def model_directory(checkpoint: Path, source: Path, root: Path, *, name: str, dtype: str) -> Path:
    """The directory `<root>/<name>-<digest>` of the model in a checkpoint, made at its first use: whole or absent.

    The digest is of all that it is made of, so that one of the same name never changes. Shards are linked where the
    file system can.

    Args:
        checkpoint: A whole one.
        source: Directory of the model that was trained.
        root: Where the directory lies; made if it is not there.
        name: Begins the directory's name.
        dtype: Type that a reader of its config computes in; the weights stay float32.

    Raises CheckpointError when the checkpoint is not whole, and OSError as the disk does.
    """
    target = root / f"{name}-{_digest(checkpoint, source, dtype)[:12]}"
    partial = root / f".{target.name}.partial"
    root.mkdir(parents=True, exist_ok=True)
    with (root / f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            copy_description(source, partial, dtype)
            _link_weights(checkpoint, partial)
            partial.rename(target)
    return target


def copy_description(source: Path, target: Path, dtype: str) -> None:
    """Copy a model's config, tokenizer and chat template, without its weights and their index; `dtype` is the type that
    the config is to name, since whoever loads the weights rounds them to that.
    """
    for path in _description(source):
        shutil.copyfile(path, target / path.name)
    config = json.loads((source / "config.json").read_text())
    names = [name for name in ("dtype", "torch_dtype") if name in config] or ["dtype"]  # the second is the older one
    (target / "config.json").write_text(json.dumps(config | dict.fromkeys(names, dtype), indent=2) + "\n")


def _description(source: Path) -> list[Path]:
    files = (path for path in source.iterdir() if path.suffix in _DESCRIPTION)
    return sorted(path for path in files if not path.name.endswith(".index.json"))


def _digest(checkpoint: Path, source: Path, dtype: str) -> str:
    digest = hashlib.sha256(dtype.encode())
    for path in (checkpoint / MANIFEST, *_description(source)):
        digest.update(f"{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _link_weights(checkpoint: Path, target: Path) -> None:
    names = shards(read_manifest(checkpoint), "weights")
    weight_map: dict[str, str] = {}
    total = 0
    for number, name in enumerate(names, start=1):
        shard = f"model-{number:05d}-of-{len(names):05d}.safetensors"
        tensors = read_header(checkpoint / name)
        link_file(checkpoint / name, target / shard)
        weight_map |= dict.fromkeys(tensors, shard)
        total += sum(_NUM_BYTES * math.prod(tensor.shape) for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
