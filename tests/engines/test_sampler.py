"""Sampling on the real vLLM: seeds, and how completions end."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drgrpo.rollout.sampling import Completion, SampleRequest
from drgrpo.trainer.batch import Sample
from tests.engines import reference
from tests.engines.process import EngineProcess
from tests.engines.samples import LIMIT, long_prompts
from tests.engines.sampling import SAMPLING, generate, sample_requests

pytestmark = pytest.mark.engine

EOS = 2


def test_samples_of_a_seed_are_identical_over_repeats_order_and_half_batches(
    sampler: EngineProcess, completions: list[Completion]
) -> None:
    wanted = sample_requests()
    assert generate(sampler, wanted) == completions
    assert generate(sampler, wanted[::-1])[::-1] == completions
    assert generate(sampler, wanted[::2]) == completions[::2]
    assert generate(sampler, wanted[5:6]) == completions[5:6]


def test_the_seconds_of_a_generation_are_its_own(sampler: EngineProcess) -> None:
    started = time.perf_counter()
    generate(sampler, sample_requests())
    elapsed = time.perf_counter() - started
    time.sleep(0.1)
    assert elapsed / 4 < sampler.call("generation_seconds") < elapsed


@pytest.mark.parametrize("lost", [{0}, {5, 6, 31}, set(range(32))])
def test_requests_that_vllm_loses_are_none_and_the_others_keep_their_place(
    lost: set[int], sampler: EngineProcess, completions: list[Completion]
) -> None:
    wanted = sample_requests()
    found = sampler.call("generate_losing", lost, wanted, SAMPLING)
    assert found == [None if i in lost else completion for i, completion in enumerate(completions)]
    assert generate(sampler, wanted[:3]) == completions[:3]  # nothing is left over for the next call


def test_a_prompt_from_the_prefix_cache_gives_the_same_samples(sampler: EngineProcess) -> None:
    prompts = long_prompts()
    wanted = [SampleRequest(prompt, seed=10 * i + k) for i, prompt in enumerate(prompts) for k in range(4)]
    assert sampler.call("cached_tokens", prompts[0], replace(SAMPLING, max_tokens=1)) == 0
    first = generate(sampler, wanted)
    assert sampler.call("cached_tokens", prompts[0], replace(SAMPLING, max_tokens=1)) == 128
    assert generate(sampler, wanted[::-1])[::-1] == first
    assert generate(sampler, wanted[::3]) == first[::3]


def test_samples_of_a_group_differ_by_their_seeds(completions: list[Completion]) -> None:
    for start in range(0, len(completions), 8):
        assert len({tuple(completion.token_ids) for completion in completions[start : start + 8]}) == 8


def test_greedy_tokens_are_the_most_likely_of_the_reference(sampler: EngineProcess, tiny_model: Path) -> None:
    wanted = sample_requests()[::8]
    model = reference.load_model(tiny_model)
    for request, greedy in zip(wanted, generate(sampler, wanted, replace(SAMPLING, temperature=0.0)), strict=True):
        sample = Sample(0, request.prompt_ids, greedy.token_ids)
        likely = reference.token_distributions(model, sample, 1.0).argmax(-1).tolist()
        assert list(greedy.token_ids) == likely


@pytest.fixture(scope="module")
def ended(sampler: EngineProcess) -> tuple[SampleRequest, list[int]]:
    """A request whose completion ends by itself after several tokens, and that completion."""
    prompt = sample_requests()[0].prompt_ids
    wanted = [SampleRequest(prompt, seed=seed) for seed in range(400)]
    for request, completion in zip(wanted, generate(sampler, wanted), strict=True):
        if EOS in completion.token_ids[2:-1]:
            raise AssertionError("a completion goes on after its EOS")
        if completion.token_ids[-1] == EOS and 4 <= len(completion.token_ids) < LIMIT:
            return request, completion.token_ids
    raise AssertionError("no completion ends by itself")


def test_an_eos_exactly_at_the_limit_is_a_stop(sampler: EngineProcess, ended: tuple[SampleRequest, list[int]]) -> None:
    request, token_ids = ended
    (completion,) = generate(sampler, [replace(request, max_tokens=len(token_ids))])
    assert (completion.token_ids, completion.finish_reason) == (token_ids, "stop")


def test_a_completion_cut_at_the_limit_is_a_length(
    sampler: EngineProcess, ended: tuple[SampleRequest, list[int]]
) -> None:
    request, token_ids = ended
    (completion,) = generate(sampler, [replace(request, max_tokens=len(token_ids) - 1)])
    assert (completion.token_ids, completion.finish_reason) == (token_ids[:-1], "length")


def test_the_limit_is_that_of_the_batch_unless_a_request_has_its_own(
    sampler: EngineProcess, ended: tuple[SampleRequest, list[int]]
) -> None:
    request, token_ids = ended
    short = replace(SAMPLING, max_tokens=2)
    first, second = generate(sampler, [request, replace(request, max_tokens=3)], short)
    assert (first.token_ids, second.token_ids) == (token_ids[:2], token_ids[:3])


def test_ignoring_eos_samples_to_the_limit(sampler: EngineProcess, ended: tuple[SampleRequest, list[int]]) -> None:
    request, token_ids = ended
    (completion,) = generate(sampler, [request], replace(SAMPLING, ignore_eos=True))
    assert completion.token_ids[: len(token_ids)] == token_ids
    assert (len(completion.token_ids), completion.finish_reason) == (LIMIT, "length")


def test_a_stop_string_stays_in_the_tokens_and_no_eos_follows(
    sampler: EngineProcess, completions: list[Completion], tokenizer: Any
) -> None:
    index, stop, num_tokens = _two_tokens_of_text(completions, tokenizer)
    request, full = sample_requests()[index], completions[index]
    (completion,) = generate(sampler, [request], replace(SAMPLING, stop=(stop,)))
    assert completion.token_ids == full.token_ids[:num_tokens]
    assert completion.logprobs == full.logprobs[:num_tokens]  # type: ignore[index]
    assert tokenizer.decode(completion.token_ids).endswith(stop)
    assert completion.finish_reason == "stop"
    assert EOS not in completion.token_ids

    (at_limit,) = generate(sampler, [replace(request, max_tokens=num_tokens)], replace(SAMPLING, stop=(stop,)))
    assert at_limit == completion  # a stop string exactly at the limit is a stop, too


def _two_tokens_of_text(completions: list[Completion], tokenizer: Any) -> tuple[int, str, int]:
    """A completion, the text of two neighbouring tokens of it, and its length up to their first occurrence."""
    for index, completion in enumerate(completions):
        for end in range(5, len(completion.token_ids) - 3):
            stop = tokenizer.decode(completion.token_ids[end - 2 : end])
            before = tokenizer.decode(completion.token_ids[: end - 1])
            if stop.isascii() and stop.isprintable() and stop not in before and EOS not in completion.token_ids[:end]:
                return index, stop, end
    raise AssertionError("no completion has two neighbouring tokens of plain text")


def test_another_policy_than_the_one_asked_for_is_an_error(sampler: EngineProcess) -> None:
    with pytest.raises(RuntimeError, match="holds policy_version 0, but 1 was asked for"):
        sampler.call("generate", sample_requests()[:1], SAMPLING, policy_version=1)
