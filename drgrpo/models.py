"""Where a model's weights are: a local directory, a packaged model or a Hub id, resolved to a directory."""

import json
import re
from pathlib import Path
from typing import Any

from drgrpo.packaged_model import PACKAGED_MODELS, ModelError, check_disk, convert_packaged, find_gguf

__all__ = ["ModelError", "check_model", "model_context_length", "resolve_model"]

_HUB_FILES = ["*.safetensors", "*.json", "tokenizer*", "*.model", "*.txt", "*.jinja"]
# Second copies of the weights in other layouts, which neither vLLM nor transformers would load.
_HUB_IGNORED = ["original/*", "consolidated*", "onnx/*"]
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


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
    directory = _local_directory(path) or _download(path, revision)
    _check_directory(path, directory)
    return directory


def check_model(path: str, *, revision: str, cache_dir: Path) -> None:
    """Find out in seconds, downloading no weights, whether `resolve_model` can succeed.

    Raises:
        ModelError: As `resolve_model`.
    """
    if path in PACKAGED_MODELS:
        find_gguf(path)
        if not any(cache_dir.glob(f"models/{path}-*")):
            check_disk(path, cache_dir)
        return
    directory = _local_directory(path)
    if directory is None:
        _hub_config(path, revision)
    else:
        _check_directory(path, directory)


def model_context_length(path: str, *, revision: str = "main") -> int | None:
    """Longest sequence in tokens that model `path` was made for, from its config alone; None where it does not say.

    Raises:
        ModelError: The config is missing or malformed.
    """
    if path in PACKAGED_MODELS:
        return PACKAGED_MODELS[path].context_length
    directory = _local_directory(path)
    file = directory / "config.json" if directory else _hub_config(path, revision)
    config = _read_config(path, file)
    text_config = config.get("text_config")
    for section in (config, text_config if isinstance(text_config, dict) else {}):
        for key in _CONTEXT_KEYS:
            if isinstance(section.get(key), int):
                return int(section[key])
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


def _check_directory(path: str, directory: Path) -> None:
    _read_config(path, directory / "config.json")
    for name in _weight_files(path, directory):
        _check_safetensors(path, directory / name)
    if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelError(
            f"model.path = {path!r}: no tokenizer in {directory} (one of {', '.join(_TOKENIZER_FILES)}); "
            "save it there with tokenizer.save_pretrained"
        )


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


def _check_safetensors(path: str, file: Path) -> None:
    """Compare the size of `file` with what its header promises: a cut download fails here, not inside an engine."""
    if not file.is_file():
        raise ModelError(f"model.path = {path!r}: {file} is missing although the index names it; download it again")
    try:
        with file.open("rb") as stream:
            header_length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(header_length) if header_length < 2**27 else b"")
        tensors = (entry for name, entry in header.items() if name != "__metadata__")
        expected = 8 + header_length + max((entry["data_offsets"][1] for entry in tensors), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ModelError(
            f"model.path = {path!r}: {file} is not safetensors (a Git LFS pointer, perhaps); download it again"
        ) from error
    if file.stat().st_size != expected:
        raise ModelError(
            f"model.path = {path!r}: {file} has {file.stat().st_size} bytes, not {expected}; download it again"
        )


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


def _download(path: str, revision: str) -> Path:
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                path, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_IGNORED
            )
        )
    except Exception as error:
        raise _hub_error(path, revision, error) from error


def _hub_config(path: str, revision: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        try:
            return Path(huggingface_hub.hf_hub_download(path, "config.json", revision=revision, local_files_only=True))
        except LocalEntryNotFoundError:
            # One request without retries: a download would try for half a minute where there is no network.
            info = huggingface_hub.HfApi().model_info(path, revision=revision, timeout=10)
        if not any(file.rfilename.endswith(".safetensors") for file in info.siblings or []):
            raise ModelError(f"model.path = {path!r}: the Hub has no safetensors weights of it; choose another model")
        return Path(huggingface_hub.hf_hub_download(path, "config.json", revision=revision))
    except ModelError:
        raise
    except Exception as error:
        raise _hub_error(path, revision, error) from error


def _hub_error(path: str, revision: str, error: Exception) -> ModelError:
    return ModelError(
        f"model.path = {path!r} (revision {revision!r}): neither to be had from the Hub nor in its cache: "
        f"{str(error).strip() or type(error).__name__}; check the id and the network, set HF_TOKEN for a gated model, "
        f"or give a local directory or a packaged model ({', '.join(PACKAGED_MODELS)})"
    )
