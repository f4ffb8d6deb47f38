"""Where a model's weights are: a local directory, a packaged model or a Hub id, resolved to a directory."""

import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drgrpo.architecture import context_length
from drgrpo.hub_model import cached_snapshot, download_model, download_tokenizer, hub_model
from drgrpo.packaged_model import (
    PACKAGED_MODELS,
    ModelError,
    check_disk,
    convert_packaged,
    find_gguf,
    packaged_tokenizer,
)

__all__ = ["ModelError", "ModelFacts", "inspect_model", "resolve_model", "tokenizer_arguments"]

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of a model before it is loaded.

    Attributes:
        config: Its `config.json`; empty for a packaged model, which may not have one yet.
        num_parameters: Number of its parameters; None where the Hub does not say.
        context_length: Longest sequence in tokens that it was made for; None where its config does not say.
    """

    config: Mapping[str, Any]
    num_parameters: int | None
    context_length: int | None


def resolve_model(path: str, *, revision: str, cache_dir: Path) -> Path:
    """The directory with the config, safetensors weights and tokenizer of model `path`.

    Args:
        path: Local directory, packaged name (`smollm2`, converted under `cache_dir` at first use, 35 s) or Hub id.
        revision: Hub revision; ignored elsewhere.
        cache_dir: Where packaged models are converted to. Hub models go to the Hub's own cache.

    Raises:
        ModelError: Not found, not reachable, incomplete, or pickled weights only.
    """
    if path in PACKAGED_MODELS:
        return convert_packaged(path, cache_dir)
    directory = _local_directory(path) or download_model(path, revision)
    _check_directory(path, directory)
    return directory


def inspect_model(path: str, *, revision: str, cache_dir: Path) -> ModelFacts:
    """Find out in seconds, downloading no weights, whether `resolve_model` can succeed, and what is known of the model.

    Raises:
        ModelError: As `resolve_model`.
    """
    if path in PACKAGED_MODELS:
        find_gguf(path)
        if not any(cache_dir.glob(f"models/{path}-*")):
            check_disk(path, cache_dir)
        model = PACKAGED_MODELS[path]
        return ModelFacts({}, model.num_bytes // 4, model.context_length)
    directory = _local_directory(path) or _whole_snapshot(path, revision)
    if directory is None:
        config_file, num_parameters = hub_model(path, revision)
    else:
        config_file, num_parameters = directory / "config.json", _check_directory(path, directory)
    config = _read_config(path, config_file)
    return ModelFacts(config, num_parameters, context_length(config))


def tokenizer_arguments(path: str, *, revision: str, cache_dir: Path) -> dict[str, str]:
    """Arguments with which `AutoTokenizer.from_pretrained` finds the tokenizer of model `path`, without its weights.

    Of a Hub model that is not in the cache the small files are downloaded.

    Raises:
        ModelError: As `resolve_model`.
    """
    if path in PACKAGED_MODELS:
        return packaged_tokenizer(path, cache_dir)
    directory = _local_directory(path) or _whole_snapshot(path, revision) or download_tokenizer(path, revision)
    return {"pretrained_model_name_or_path": str(directory)}


def _whole_snapshot(path: str, revision: str) -> Path | None:
    """The Hub's cached copy of a model, if it can be used as it is."""
    directory = cached_snapshot(path, revision)
    if directory:
        with suppress(ModelError):
            _check_directory(path, directory)
            return directory
    return None


def _local_directory(path: str) -> Path | None:
    """`path` as a directory, or None if it can only be a Hub id."""
    directory = Path(path).expanduser()
    if directory.is_dir():
        return directory.absolute()
    looks_local = path.startswith(("/", ".", "~")) or path.count("/") > 1
    if looks_local or directory.exists() or "/" not in path:
        raise ModelError(
            f"model.path = {path!r}: no such directory (looked in {Path.cwd()}); give a directory, a Hub id "
            f"(owner/name) or a packaged model ({', '.join(PACKAGED_MODELS)})"
        )
    return None


def _check_directory(path: str, directory: Path) -> int:
    """The number of parameters in it."""
    _read_config(path, directory / "config.json")
    num_parameters = sum(_check_safetensors(path, directory / name) for name in _weight_files(path, directory))
    if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelError(
            f"model.path = {path!r}: no tokenizer in {directory} (one of {', '.join(_TOKENIZER_FILES)}); "
            "save it there with tokenizer.save_pretrained"
        )
    return num_parameters


def _weight_files(path: str, directory: Path) -> list[str]:
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        return _indexed_files(path, index)
    if (directory / "model.safetensors").is_file():
        return ["model.safetensors"]
    pickles = sorted(file.name for suffix in ("bin", "pt", "pth") for file in directory.glob(f"*.{suffix}"))
    if pickles:
        raise ModelError(
            f"model.path = {path!r}: its weights are pickles ({', '.join(pickles)}), which can run code when they are "
            "read; convert them to safetensors where you trust them (model.save_pretrained does)"
        )
    raise ModelError(
        f"model.path = {path!r}: no model.safetensors or model.safetensors.index.json in {directory}; "
        "save the model there with model.save_pretrained"
    )


def _indexed_files(path: str, index: Path) -> list[str]:
    names = _read_json(path, index).get("weight_map")
    files = list(names.values()) if isinstance(names, dict) else []
    if not files or not all(isinstance(name, str) and re.fullmatch(r"[\w.-]+\.safetensors", name) for name in files):
        raise ModelError(f"model.path = {path!r}: {index} does not name safetensors files beside it; save it again")
    return sorted(set(files))


def _check_safetensors(path: str, file: Path) -> int:
    """The number of parameters in `file`, whose size must be what its header promises: a cut download fails here."""
    if not file.is_file():
        raise ModelError(f"model.path = {path!r}: {file} is missing although the index names it; download it again")
    try:
        with file.open("rb") as stream:
            header_length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(header_length) if header_length < 2**27 else b"")
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        expected = 8 + header_length + max((entry["data_offsets"][1] for entry in tensors), default=0)
        num_parameters = sum(math.prod(entry["shape"]) for entry in tensors)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ModelError(
            f"model.path = {path!r}: {file} is not safetensors (a Git LFS pointer, perhaps); download it again"
        ) from error
    if file.stat().st_size != expected:
        raise ModelError(
            f"model.path = {path!r}: {file} has {file.stat().st_size} bytes, not {expected}; download it again"
        )
    return num_parameters


def _read_config(path: str, file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ModelError(
            f"model.path = {path!r}: no config.json in {file.parent}; is it a Hugging Face model directory?"
        )
    return _read_json(path, file)


def _read_json(path: str, file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"model.path = {path!r}: {file} is not JSON ({error}); download or save it again") from error
    if not isinstance(value, dict):
        raise ModelError(f"model.path = {path!r}: {file} is not a JSON object; download or save it again")
    return value
