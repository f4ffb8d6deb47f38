"""Micro-batch plans: every sequence once, within the budget, as many on every rank, balanced, reproducible."""

import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drgrpo.packing import Microbatch, Segment, plan_microbatches


@dataclass(frozen=True)
class Lengths:
    group_id: int
    prompt_len: int
    completion_len: int


@st.composite
def batches(draw: st.DrawFn) -> list[Lengths]:
    prompt_lens = draw(st.lists(st.integers(1, 40), min_size=1, max_size=8))
    items = draw(st.lists(st.tuples(st.integers(0, len(prompt_lens) - 1), st.integers(1, 120)), max_size=40))
    return [Lengths(group, prompt_lens[group], completion) for group, completion in items]


@given(batches(), st.integers(1, 200), st.integers(1, 5), st.booleans())
@settings(max_examples=300, deadline=None)
def test_every_plan_covers_fits_and_keeps_ranks_in_step(
    sequences: list[Lengths], budget: int, num_ranks: int, share: bool
) -> None:
    plan = plan_microbatches(sequences, token_budget=budget, num_ranks=num_ranks, share_prompts=share)
    assert len(plan) == num_ranks
    assert len({len(microbatches) for microbatches in plan}) == 1
    microbatches = [microbatch for rank in plan for microbatch in rank]
    assert sorted(i for microbatch in microbatches for i in microbatch.indexes) == list(range(len(sequences)))
    for microbatch in microbatches:
        assert microbatch.num_tokens <= budget or len(microbatch.indexes) == 1
        for segment in microbatch.segments:
            members = [sequences[index] for index in segment.indexes]
            assert len({member.group_id for member in members}) == 1
            assert share or len(members) == 1
            tokens = members[0].prompt_len + sum(member.completion_len for member in members)
            assert segment.num_tokens == tokens
    assert plan == plan_microbatches(sequences, token_budget=budget, num_ranks=num_ranks, share_prompts=share)


@given(batches(), st.integers(1, 200), st.booleans())
@settings(max_examples=100, deadline=None)
def test_no_two_microbatches_of_one_rank_would_fit_into_one(sequences: list[Lengths], budget: int, share: bool) -> None:
    (rank,) = plan_microbatches(sequences, token_budget=budget, num_ranks=1, share_prompts=share)
    sizes = sorted(microbatch.num_tokens for microbatch in rank)
    assert len(sizes) < 2 or sizes[0] + sizes[1] > budget


def test_a_group_shares_its_prompt_within_the_budget() -> None:
    sequences = [Lengths(7, 10, completion) for completion in (5, 6, 7)]
    (shared,) = plan_microbatches(sequences, token_budget=100, num_ranks=1, share_prompts=True)
    assert shared == [Microbatch((Segment((0, 1, 2), 28),))]
    (apart,) = plan_microbatches(sequences, token_budget=100, num_ranks=1, share_prompts=False)
    assert apart == [Microbatch((Segment((2,), 17), Segment((1,), 16), Segment((0,), 15)))]


def test_a_group_over_the_budget_repeats_its_prompt() -> None:
    sequences = [Lengths(0, 10, completion) for completion in (20, 5, 20, 5)]
    (plan,) = plan_microbatches(sequences, token_budget=35, num_ranks=1, share_prompts=True)
    assert [microbatch.segments for microbatch in plan] == [(Segment((0, 1), 35),), (Segment((2, 3), 35),)]


def test_a_sequence_over_the_budget_is_alone() -> None:
    sequences = [Lengths(0, 10, 5), Lengths(0, 10, 200), Lengths(1, 1, 1)]
    (plan,) = plan_microbatches(sequences, token_budget=50, num_ranks=1, share_prompts=True)
    assert [microbatch.indexes for microbatch in plan] == [(1,), (0, 2)]


def test_a_rank_with_less_to_do_gets_empty_microbatches() -> None:
    sequences = [Lengths(0, 1, 90), Lengths(1, 1, 40), Lengths(2, 1, 40)]
    plan = plan_microbatches(sequences, token_budget=60, num_ranks=3, share_prompts=True)
    assert [[microbatch.indexes for microbatch in rank] for rank in plan] == [[(0,)], [(1,)], [(2,)]]
    plan = plan_microbatches(sequences[:1], token_budget=60, num_ranks=2, share_prompts=True)
    assert plan == [[Microbatch((Segment((0,), 91),))], [Microbatch()]]


def test_groups_are_found_by_id_wherever_their_samples_stand() -> None:
    sequences = [Lengths(1, 4, 3), Lengths(0, 9, 2), Lengths(1, 4, 1), Lengths(0, 9, 5)]
    (plan,) = plan_microbatches(sequences, token_budget=16, num_ranks=1, share_prompts=True)
    assert [microbatch.segments for microbatch in plan] == [(Segment((1, 3), 16),), (Segment((0, 2), 8),)]


@pytest.mark.parametrize("num_ranks", [2, 4, 8])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(("num_groups", "group_size", "bound"), [(128, 8, 1.02), (16, 8, 1.05), (2, 64, 1.08)])
def test_tokens_are_balanced_over_ranks(
    num_ranks: int, share: bool, num_groups: int, group_size: int, bound: float
) -> None:
    generator = random.Random(0)
    prompts = [generator.randint(50, 200) for _ in range(num_groups)]
    sequences = [
        Lengths(group, prompt, min(1024, int(generator.lognormvariate(5.5, 0.6))))
        for group, prompt in enumerate(prompts)
        for _ in range(group_size)
    ]
    plan = plan_microbatches(sequences, token_budget=4096, num_ranks=num_ranks, share_prompts=share)
    loads = [sum(microbatch.num_tokens for microbatch in rank) for rank in plan]
    assert max(loads) <= bound * sum(loads) / num_ranks


def test_nothing_to_plan_gives_no_microbatches() -> None:
    assert plan_microbatches([], token_budget=10, num_ranks=2, share_prompts=True) == [[], []]


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0 and 1"):
        plan_microbatches([], token_budget=0, num_ranks=1, share_prompts=True)
    with pytest.raises(ValueError, match="group 3 has prompts of different lengths"):
        plan_microbatches([Lengths(3, 1, 1), Lengths(3, 2, 1)], token_budget=9, num_ranks=1, share_prompts=True)
