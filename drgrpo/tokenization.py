"""Which prompts fit the limit, found out before a start.

`python -m drgrpo.tokenization` does it, in a process of its own: the caller must not import transformers.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from drgrpo.data.errors import DataError
from drgrpo.data.prompts import render_prompt
from drgrpo.module_process import run_module


class TokenizerError(ValueError):
    """A tokenizer that cannot be loaded, in the words of transformers."""


@dataclass(frozen=True, slots=True)
class Questions:
    """The questions of a source, and how many of them must become prompts that fit."""

    questions: Sequence[str]
    num_wanted: int


@dataclass(frozen=True, slots=True)
class Fit:
    """Prompts that fit, counted up to the number wanted; the shortest of those tried, in tokens."""

    num_fitting: int
    shortest: int


def count_fitting(
    sources: Mapping[str, Questions],
    *,
    tokenizer: Mapping[str, str],
    trust_remote_code: bool,
    prompt: Mapping[str, str],
    max_prompt_tokens: int,
) -> dict[str, Fit]:
    """For each source how many of its prompts have at most `max_prompt_tokens` tokens.

    Args:
        sources: By name.
        tokenizer: Arguments with which `AutoTokenizer.from_pretrained` finds it.
        trust_remote_code: Whether code that it brings may run.
        prompt: The arguments `style`, `system_prompt` and `prompt_template` of `render_prompt`.
        max_prompt_tokens: The limit.

    Raises:
        DataError: As `render_prompt`.
        TokenizerError: It cannot be loaded.
    """
    job = {
        "sources": {name: asdict(source) for name, source in sources.items()},
        "tokenizer": dict(tokenizer),
        "trust_remote_code": trust_remote_code,
        "prompt": dict(prompt),
        "max_prompt_tokens": max_prompt_tokens,
    }
    found = json.loads(_answer(json.dumps(job), _state(Path(tokenizer["pretrained_model_name_or_path"]))))
    if "tokenizer" in found:
        raise TokenizerError(found["tokenizer"])
    if "prompt" in found:
        raise DataError(found["prompt"])
    return {name: Fit(**fit) for name, fit in found.items()}


@lru_cache(maxsize=8)
def _answer(job: str, _: Any) -> str:
    """JSON to JSON. The arms of a comparison ask the same."""
    done = run_module("drgrpo.tokenization", given=job)
    if done.returncode:
        raise RuntimeError(f"tokenising the prompts failed with status {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout.splitlines()[-1]


def _state(directory: Path) -> tuple[tuple[str, int, int], ...]:
    """What changes when a file of a tokenizer does."""
    files = ((path.name, path.stat()) for path in sorted(directory.iterdir()) if path.is_file())
    return tuple((name, status.st_size, status.st_mtime_ns) for name, status in files)


def _work(job: Mapping[str, Any]) -> dict[str, Any]:
    from transformers import AutoTokenizer

    try:
        trust_remote_code = job["trust_remote_code"]
        tokenizer = AutoTokenizer.from_pretrained(
            **job["tokenizer"], trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:
        return {"tokenizer": str(error)}
    try:
        return {name: asdict(_fit(Questions(**source), tokenizer, job)) for name, source in job["sources"].items()}
    except DataError as error:
        return {"prompt": str(error)}


def _fit(source: Questions, tokenizer: Any, job: Mapping[str, Any]) -> Fit:
    """Stops once enough fit, so that the usual case takes no time."""
    num_fitting = 0
    lengths: list[int] = []
    for question in source.questions:
        _, ids = render_prompt(question, **job["prompt"], tokenizer=tokenizer)
        lengths.append(len(ids))
        num_fitting += len(ids) <= job["max_prompt_tokens"]
        if num_fitting == source.num_wanted:
            break
    return Fit(num_fitting, min(lengths, default=0))


if __name__ == "__main__":
    print(json.dumps(_work(json.load(sys.stdin))))
