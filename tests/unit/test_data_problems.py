"""Which problems a step sees: pure in (dataset, seed, step), once per epoch, no repeats within a step."""

import hashlib
import pickle
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drgrpo.data.errors import DataError
from drgrpo.data.problems import Problem, ProblemSet, dataset_digest, make_problem, sample_seed


def make_problems(count: int) -> list[Problem]:
    return [make_problem(f"question {index}", str(index)) for index in range(count)]


@given(st.integers(1, 40), st.data(), st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_each_epoch_holds_every_problem_once_and_no_step_repeats_one(size: int, data: st.DataObject, seed: int) -> None:
    prompts_per_step = data.draw(st.integers(1, size))
    problem_set = ProblemSet(make_problems(size), prompts_per_step=prompts_per_step, seed=seed)
    steps = [[problem.id for problem in problem_set.problems(step)] for step in range(4 * size // prompts_per_step + 1)]
    assert all(len(set(step)) == prompts_per_step == len(step) for step in steps)
    stream = [problem_id for step in steps for problem_id in step]
    for epoch in range(4):
        assert len(set(stream[epoch * size : (epoch + 1) * size])) == size


@pytest.mark.parametrize(("size", "prompts_per_step"), [(10, 4), (7, 7), (9, 5), (5, 4)])
def test_a_step_is_the_same_whatever_was_asked_before(size: int, prompts_per_step: int) -> None:
    used = ProblemSet(make_problems(size), prompts_per_step=prompts_per_step, seed=3)
    in_order = [used.problems(step) for step in range(30)]
    for step in (29, 0, 13):
        fresh = ProblemSet(make_problems(size), prompts_per_step=prompts_per_step, seed=3)
        assert fresh.problems(step) == in_order[step]


def test_the_order_is_the_same_in_another_process() -> None:
    program = (
        "from drgrpo.data.problems import *\n"
        "s = ProblemSet([make_problem(f'question {i}', str(i)) for i in range(50)], prompts_per_step=8, seed=1)\n"
        "print(*[p.id for p in s.problems(11)])"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    problem_set = ProblemSet(make_problems(50), prompts_per_step=8, seed=1)
    assert printed.split() == [problem.id for problem in problem_set.problems(11)]


def test_a_late_step_of_a_set_that_barely_fills_a_step_is_found_without_deep_recursion() -> None:
    problem_set = ProblemSet(make_problems(1025), prompts_per_step=1024, seed=0)
    assert len({problem.id for problem in problem_set.problems(1000)}) == 1024


def test_the_order_depends_on_the_seed_and_the_epoch_but_not_on_the_order_of_the_source() -> None:
    problems = make_problems(20)
    first = ProblemSet(problems, prompts_per_step=20, seed=0)
    assert first.problems(0) != ProblemSet(problems, prompts_per_step=20, seed=1).problems(0)
    assert first.problems(0) != first.problems(1)
    assert first.problems(0) == ProblemSet(problems[::-1], prompts_per_step=20, seed=0).problems(0)


def test_every_place_is_equally_likely() -> None:
    problems = make_problems(5)
    first = Counter(ProblemSet(problems, prompts_per_step=5, seed=seed).problems(0)[0].id for seed in range(2000))
    # 400 expected, standard deviation sqrt(2000 * 0.2 * 0.8) = 17.9
    assert all(abs(first[problem.id] - 400) < 90 for problem in problems)


def test_fewer_problems_than_prompts_are_repeated_evenly() -> None:
    problem_set = ProblemSet(make_problems(3), prompts_per_step=8, seed=0)
    chosen = Counter(problem.id for step in range(3) for problem in problem_set.problems(step))
    assert sorted(chosen.values()) == [8, 8, 8]


def test_a_problem_set_can_be_sent_to_another_process() -> None:
    problem_set = ProblemSet(make_problems(10), prompts_per_step=3, seed=0)
    assert pickle.loads(pickle.dumps(problem_set)).problems(7) == problem_set.problems(7)


def test_ids_are_hashes_of_question_and_answer() -> None:
    problem = make_problem("1 + 1?", "2")
    assert problem.id == hashlib.sha256(b"1 + 1?\x002").hexdigest()[:16]
    assert make_problem("1 + 1?2", "").id != problem.id != make_problem("1 + 1?", "3").id


def test_the_digest_tells_content_and_order_apart() -> None:
    problems = make_problems(3)
    expected = hashlib.sha256("\n".join(problem.id for problem in problems).encode()).hexdigest()
    assert dataset_digest(problems) == expected
    assert len({expected, dataset_digest(problems[::-1]), dataset_digest(problems[:2])}) == 3


def test_sample_seeds_are_known_distinct_63_bit_numbers() -> None:
    digest = hashlib.blake2b(b"1/2/abc/3", digest_size=8).digest()
    assert sample_seed(1, 2, "abc", 3) == int.from_bytes(digest, "big") // 2
    seeds = {sample_seed(run, step, name, i) for run in (0, 1) for step in (0, 1) for name in "ab" for i in range(500)}
    assert len(seeds) == 4000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_sets_that_cannot_work_are_refused() -> None:
    with pytest.raises(DataError, match="no problems"):
        ProblemSet([], prompts_per_step=1, seed=0)
    with pytest.raises(DataError, match="prompts_per_step = 0"):
        ProblemSet(make_problems(1), prompts_per_step=0, seed=0)
    with pytest.raises(DataError, match="same id"):
        ProblemSet(make_problems(2) * 2, prompts_per_step=1, seed=0)
