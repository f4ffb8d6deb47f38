"""Models on the Hugging Face Hub: what it says of them, and their files in its cache."""

from pathlib import Path

from drgrpo.packaged_model import PACKAGED_MODELS, ModelError

# Everything but the weights.
_SMALL_FILES = ["*.json", "tokenizer*", "*.model", "*.txt", "*.jinja"]
_FILES = ["*.safetensors", *_SMALL_FILES]
# Second copies of the weights in other layouts, which neither vLLM nor transformers would load.
_IGNORED = ["original/*", "consolidated*", "onnx/*"]


def hub_model(path: str, revision: str) -> tuple[Path, int | None]:
    """The `config.json` of a model that the Hub has, and its number of parameters if the Hub knows it.

    Raises:
        ModelError: Not found, not reachable, or without safetensors weights.
    """
    import huggingface_hub

    try:
        # One request without retries: a download would try for half a minute where there is no network.
        info = huggingface_hub.HfApi().model_info(path, revision=revision, timeout=10)
        if not any(file.rfilename.endswith(".safetensors") for file in info.siblings or []):
            raise ModelError(f"model.path = {path!r}: the Hub has no safetensors weights of it; choose another model")
        config = Path(huggingface_hub.hf_hub_download(path, "config.json", revision=revision))
    except ModelError:
        raise
    except Exception as error:
        raise _unreachable(path, revision, error) from error
    return config, info.safetensors.total if info.safetensors else None


def cached_snapshot(path: str, revision: str) -> Path | None:
    """The directory of a model in the Hub's cache, which may lack files; None where there is none."""
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                path, revision=revision, allow_patterns=_FILES, ignore_patterns=_IGNORED, local_files_only=True
            )
        )
    except (ValueError, OSError):
        return None


def download_model(path: str, revision: str) -> Path:
    """The directory of a model in the Hub's cache, after what is missing there was downloaded.

    Raises:
        ModelError: Neither to be had from the Hub nor in its cache.
    """
    return _download(path, revision, _FILES)


def download_tokenizer(path: str, revision: str) -> Path:
    """As `download_model`, without the weights."""
    return _download(path, revision, _SMALL_FILES)


def _download(path: str, revision: str, files: list[str]) -> Path:
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(path, revision=revision, allow_patterns=files, ignore_patterns=_IGNORED)
        )
    except Exception as error:
        raise _unreachable(path, revision, error) from error


def _unreachable(path: str, revision: str, error: Exception) -> ModelError:
    return ModelError(
        f"model.path = {path!r} (revision {revision!r}): neither to be had from the Hub nor in its cache: "
        f"{str(error).strip() or type(error).__name__}; check the id and the network, set HF_TOKEN for a gated model, "
        f"or give a local directory or a packaged model ({', '.join(PACKAGED_MODELS)})"
    )
