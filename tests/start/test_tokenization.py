"""Prompts are counted before a start as the run will make them, in another process, and no further than needed."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from drgrpo import tokenization
from drgrpo.data.prompts import render_prompt
from drgrpo.models import tokenizer_arguments
from drgrpo.tokenization import Fit, Questions, count_fitting
from tests.tiny_model import build_tiny_tokenizer

PROMPT = {"style": "chat", "system_prompt": "Count.", "prompt_template": "What is {question}?"}
NUMBERS = [str(10**n) for n in range(8)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    build_tiny_tokenizer(path)
    return path


def counted(path: Path, limit: int, **sources: Questions) -> dict[str, Fit]:
    where = {"pretrained_model_name_or_path": str(path)}
    return count_fitting(sources, tokenizer=where, trust_remote_code=False, prompt=PROMPT, max_prompt_tokens=limit)


def test_the_count_is_that_of_the_runs_own_prompts(tiny: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    lengths = [len(render_prompt(question, **PROMPT, tokenizer=tokenizer)[1]) for question in NUMBERS]
    limit = sorted(lengths)[3]
    num_fitting = sum(length <= limit for length in lengths)
    assert 0 < num_fitting < len(NUMBERS)
    found = counted(
        tiny, limit, all=Questions(NUMBERS, 99), none=Questions(NUMBERS[-1:], 1), first=Questions(NUMBERS, 1)
    )
    assert found["all"] == Fit(num_fitting, min(lengths))
    assert found["none"] == Fit(0, lengths[-1])
    assert found["first"].num_fitting == 1


def test_counting_stops_with_the_number_wanted_and_the_same_is_not_asked_twice(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    run = tokenization.run_module

    def watched(module: str, given: str) -> subprocess.CompletedProcess[str]:
        asked.append(module)
        return run(module, given=given)

    monkeypatch.setattr(tokenization, "run_module", watched)
    # The last would raise, were it reached: it is no text.
    broken: list[Any] = ["1", "2", None]
    for _ in range(2):
        assert counted(tiny, 64, data=Questions(broken, 2))["data"].num_fitting == 2
    assert asked == ["drgrpo.tokenization"]
    with pytest.raises(RuntimeError, match="tokenising the prompts failed with status 1"):
        counted(tiny, 64, data=Questions(broken, 3))
    (tiny / "added.txt").write_text("another file of the tokenizer")
    counted(tiny, 64, data=Questions(broken, 2))
    assert len(asked) == 3


@pytest.mark.engine
def test_a_packaged_model_is_not_converted_for_its_tokenizer(tmp_path: Path) -> None:
    where = tokenizer_arguments("smollm2", revision="main", cache_dir=tmp_path)
    assert where["gguf_file"].endswith(".gguf")
    questions = Questions(["1 + 1"], 1)
    found = count_fitting(
        {"data": questions}, tokenizer=where, trust_remote_code=False, prompt=PROMPT, max_prompt_tokens=64
    )
    assert found["data"].num_fitting == 1 and 0 < found["data"].shortest < 40
    assert list(tmp_path.iterdir()) == []
