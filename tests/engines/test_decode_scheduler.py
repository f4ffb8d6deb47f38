"""The scheduler of decoding steps samples what vLLM's own samples, and hands over to it where more is to do."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from drgrpo.rollout.sampling import Completion, SampleRequest, Sampling
from tests.engines.conftest import environment, make_config
from tests.engines.process import EngineProcess
from tests.engines.sampling import SAMPLING
from tests.tiny_model import VOCAB_SIZE

pytestmark = pytest.mark.engine

LIMIT, AT_ONCE = 40, 8
PLAIN = replace(SAMPLING, max_tokens=LIMIT, logprobs=False)


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[EngineProcess]:
    """An engine that decodes eight requests at once."""
    config = make_config(tiny_model, {"rollout.max_num_seqs": AT_ONCE, "rollout.max_completion_tokens": LIMIT})
    process = EngineProcess(
        "tests.engines.sampler_worker.SamplerWorker", config, tiny_model, environment=environment(config, "rollout")
    )
    yield process
    process.close()


def requests(number: int = AT_ONCE) -> list[SampleRequest]:
    """Prompts around the end of a block of 128 tokens, of which some cross it; completions of 1 to 40 tokens."""
    prompts = [[3 + (7 * i + k) % (VOCAB_SIZE - 3) for k in range(84 + 6 * i)] for i in range(number)]
    return [SampleRequest(prompt, seed=i, max_tokens=1 + (13 * i) % LIMIT) for i, prompt in enumerate(prompts)]


def both(
    engine: EngineProcess, wanted: list[SampleRequest], sampling: Sampling = PLAIN
) -> tuple[list[Completion], list[Completion], int]:
    """Completions with our scheduler and with vLLM's alone, and the number of steps that ours made."""
    ours, num_steps = engine.call("decode_steps", wanted, sampling)
    engine.call("schedule_as_vllm", True)
    theirs, none = engine.call("decode_steps", wanted, sampling)
    engine.call("schedule_as_vllm", False)
    assert none == 0
    return ours, theirs, num_steps


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_completions_and_their_ends_are_those_of_vllm(ignore_eos: bool, engine: EngineProcess) -> None:
    ours, theirs, num_steps = both(engine, requests(), replace(PLAIN, ignore_eos=ignore_eos))
    assert ours == theirs
    longest = max(len(completion.token_ids) for completion in theirs)
    assert num_steps == longest - 1  # all but the step that reads the prompts
    if ignore_eos:
        assert [len(completion.token_ids) for completion in ours] == [request.max_tokens for request in requests()]


def test_requests_that_wait_for_a_place_are_let_in(engine: EngineProcess) -> None:
    ours, theirs, num_steps = both(engine, requests(3 * AT_ONCE), replace(PLAIN, ignore_eos=True))
    assert ours == theirs
    assert num_steps > LIMIT


def test_where_blocks_are_short_requests_give_way_and_come_back(engine: EngineProcess) -> None:
    # Eight prompts of 84 to 126 tokens hold a block each; those that grow beyond 128 need a second one.
    wanted = [replace(request, max_tokens=LIMIT) for request in requests()]
    engine.call("leave_free_blocks", AT_ONCE + 1)
    try:
        ours, theirs, num_steps = both(engine, wanted, replace(PLAIN, ignore_eos=True))
    finally:
        engine.call("leave_free_blocks", 0)
    assert ours == theirs
    assert num_steps > 0
    assert [len(completion.token_ids) for completion in ours] == [LIMIT] * AT_ONCE


def test_stop_strings_are_seen_while_completions_grow(engine: EngineProcess) -> None:
    plain, _, _ = both(engine, requests())
    text = engine.call("decoded", plain[3].token_ids)
    stop = text[len(text) // 2 :][:2]
    ours, theirs, num_steps = both(engine, requests(), replace(PLAIN, stop=(stop,)))
    assert ours == theirs
    assert num_steps > 0
    assert len(ours[3].token_ids) < len(plain[3].token_ids) and ours[3].finish_reason == "stop"


def test_logprobs_come_token_by_token(engine: EngineProcess) -> None:
    ours, theirs, num_steps = both(engine, requests(), replace(PLAIN, logprobs=True))
    assert ours == theirs
    assert num_steps > 0
    assert [completion.token_ids for completion in ours] == [c.token_ids for c in both(engine, requests())[0]]


@pytest.fixture(scope="module")
def simulation(tiny_model: Path) -> Iterator[EngineProcess]:
    """Schedulers without an engine, whose requests come, end by a token or a length, are aborted and give way."""
    config = make_config(tiny_model, {})
    process = EngineProcess(
        "tests.engines.scheduling.Simulation", tiny_model, environment=environment(config, "rollout")
    )
    yield process
    process.close()


@pytest.mark.parametrize("num_blocks", [400, 60])  # more than all need at once, and a third of that
@pytest.mark.parametrize(("scheduler", "depth"), [("DecodeScheduler", 1), ("AsyncDecodeScheduler", 2)])
def test_every_completion_is_that_of_vllms_scheduler_while_requests_come_and_go(
    scheduler: str, depth: int, num_blocks: int, simulation: EngineProcess
) -> None:
    for seed in range(4):
        ours, theirs = (
            simulation.call("run", scheduler, seed=seed, num_blocks=num_blocks, depth=depth, as_vllm=as_vllm)
            for as_vllm in (False, True)
        )
        assert ours["reasons"] == theirs["reasons"]
        assert len(theirs["reasons"]) == 72 and set(theirs["reasons"].values()) == {"stop", "length", "abort"}
        assert ours["decode_steps"] > 100 and theirs["decode_steps"] == 0
        assert (theirs["num_preemptions"] > 0) == (num_blocks == 60)
        assert ours["num_cached_late"] > 0  # blocks of completions, whose hashes had waited, were checked too
        for name, reason in ours["reasons"].items():
            found, wanted = ours["outputs"].get(name, []), theirs["outputs"].get(name, [])
            # An aborted one is handed over as far as it was read.
            assert found == wanted[: len(found)] if reason == "abort" else found == wanted, name
