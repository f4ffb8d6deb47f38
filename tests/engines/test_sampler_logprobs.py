"""Logprobs and prompts of the real vLLM: the trainer's at every temperature, for the very tokens."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drgrpo.data.prompts import render_prompt
from drgrpo.rollout.sampling import Completion
from drgrpo.trainer.batch import Sample
from tests.engines.comparison import Trainers
from tests.engines.conftest import TrainerRanks, make_config
from tests.engines.process import EngineProcess
from tests.engines.sampling import SAMPLING, generate, sample_requests

pytestmark = pytest.mark.engine


def test_token_ids_are_the_samplers_own_and_not_those_of_their_text(
    completions: list[Completion], tokenizer: Any, tiny_model: Path
) -> None:
    again = [tokenizer.encode(tokenizer.decode(c.token_ids), add_special_tokens=False) for c in completions]
    assert sum(ids != list(completion.token_ids) for ids, completion in zip(again, completions, strict=True)) > 20
    # their logprobs belong to these ids: checked against the trainer below
    assert all(len(completion.token_ids) == len(completion.logprobs or []) for completion in completions)


def differences(completions: list[Completion], trainer: TrainerRanks, model: Path, temperature: float) -> list[float]:
    """|Δlogp| of every token between the sampler and the trainer at `temperature`."""
    sampled = zip(sample_requests(), completions, strict=True)
    samples = [Sample(index, request.prompt_ids, c.token_ids) for index, (request, c) in enumerate(sampled)]
    scored = trainer.call("score", make_config(model), samples, temperature)
    pairs = [
        (a, b) for c, row in zip(completions, scored, strict=True) for a, b in zip(c.logprobs or [], row, strict=True)
    ]
    return [abs(a - b) for a, b in pairs]


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.5])
def test_logprobs_of_a_temperature_are_the_trainers_of_that_temperature(
    temperature: float, sampler: EngineProcess, trainers: Trainers, tiny_model: Path
) -> None:
    sampled = generate(sampler, sample_requests(), replace(SAMPLING, temperature=temperature))
    gaps = differences(sampled, trainers(1), tiny_model, temperature)
    print(f"T={temperature}: mean |Δlogp| {sum(gaps) / len(gaps):.2e}, max {max(gaps):.2e}")
    assert sum(gaps) / len(gaps) < 1e-5
    assert max(gaps) < 1e-4
    if temperature != 1.0:  # raw logprobs, vLLM's default, would be these
        raw = differences(sampled, trainers(1), tiny_model, 1.0)
        assert sum(raw) / len(raw) > 0.05


def test_scored_logprobs_are_those_of_sampling(sampler: EngineProcess, completions: list[Completion]) -> None:
    sampled = zip(sample_requests(), completions, strict=True)
    sequences = [(request.prompt_ids, list(completion.token_ids)) for request, completion in sampled]
    scored = sampler.call("score", sequences)
    for row, completion in zip(scored, completions, strict=True):
        assert row == pytest.approx(completion.logprobs, abs=1e-4)


@pytest.mark.parametrize("template", ["{question}", "<|endoftext|>{question}"])
@pytest.mark.parametrize("style", ["plain", "chat"])
def test_a_prompt_has_exactly_one_bos_when_it_reaches_the_model(
    style: Any, template: str, sampler: EngineProcess, tokenizer: Any, tmp_path: Path
) -> None:
    with_bos = _adding_bos(tokenizer, tmp_path)
    bos = with_bos.bos_token_id
    assert with_bos.encode("a")[0] == bos
    if style == "chat":
        with_bos.chat_template = "{{ bos_token }}" + with_bos.chat_template
        template = "{question}"
    _, ids = render_prompt("What?", style=style, system_prompt="", prompt_template=template, tokenizer=with_bos)
    assert (ids[0], ids.count(bos)) == (bos, 1)
    assert sampler.call("prompts_seen", [ids], replace(SAMPLING, max_tokens=1)) == [ids]


def _adding_bos(tokenizer: Any, path: Path) -> Any:
    """The tokenizer with `<|endoftext|>` put before every text, as Llama's does."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(path)
    changed = AutoTokenizer.from_pretrained(path, bos_token="<|endoftext|>")
    changed.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", changed.bos_token_id)]
    )
    return changed
