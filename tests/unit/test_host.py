"""The CPU side of a run on the tiny model and a small JSONL dataset: requests, tables, rewards, advantages."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drgrpo.config import TrainConfig
from drgrpo.config.overrides import load_config
from drgrpo.data.problems import sample_seed
from drgrpo.host import Host
from drgrpo.rollout.sampling import Completion
from drgrpo.tables import TableRef, find_table, read_table, write_table
from drgrpo.trainer.batch import Sample
from drgrpo.trainer.samples import read_samples
from tests.tiny_model import build_tiny_model

NUM_TRAIN, NUM_TEST = 6, 3
ROLLOUT_COLUMNS = [
    *("run_id", "step", "policy_version", "problem_id", "group_id", "sample_index", "seed", "question", "answer"),
    *("columns", "prompt", "prompt_ids", "completion", "completion_ids", "finish_reason"),
]
REWARD_COLUMNS = ["reward", "reward_gsm8k", "correct", "grader_status", "grader_message"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the tiny model and the two splits; the sum is the answer."""
    folder = tmp_path_factory.mktemp("host")
    build_tiny_model(folder / "model")
    for split, count, offset in (("train", NUM_TRAIN, 0), ("test", NUM_TEST, 100)):
        rows = [
            {"question": f"{offset + i} + 1", "answer": f"sum #### {offset + i + 1}", "level": i} for i in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def make_config(data: Path, **options: Any) -> TrainConfig:
    """Two prompts of four completions; `options` by dotted path, `.` written as `__`."""
    overrides = {
        "model.path": str(data / "model"),
        "data.train": str(data),
        "data.eval": str(data),
        "data.prompt_style": "plain",
        "data.prompts_per_step": 2,
        "rollout.group_size": 4,
        "rollout.max_completion_tokens": 16,
        "trainer.completions_per_update": 8,
        "evaluation.samples_per_problem": 2,
        "reward.num_workers": 1,
    }
    return load_config({}, overrides | {name.replace("__", "."): value for name, value in options.items()})


def make_host(data: Path, run_dir: Path, **options: Any) -> Host:
    return Host(make_config(data, **options), str(data / "model"), "run-1", str(run_dir))


@pytest.fixture(scope="module")
def shared(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host with the plain settings, for tests that write no table twice."""
    host = make_host(data, tmp_path_factory.mktemp("run"))
    yield host
    host.close()


def completions(host: Host, texts: list[str], *, truncated: set[int] = frozenset()) -> list[Completion]:  # type: ignore[assignment]
    """What an engine would have returned for these texts: their ids, and the end token unless they were cut."""
    end = host.tokenizer.eos_token_id
    ids = [host.tokenizer.encode(text, add_special_tokens=False) for text in texts]
    return [
        Completion(tokens if i in truncated else [*tokens, end], "length" if i in truncated else "stop", None)
        for i, tokens in enumerate(ids)
    ]


def answers(host: Host, step: int, right: list[bool]) -> list[str]:
    """A right or wrong text for each request of a step, in their order."""
    problems = [problem for problem in host.problems.of_step(step) for _ in range(4)]
    return [
        problem.problem.answer if is_right else "#### 999" for problem, is_right in zip(problems, right, strict=True)
    ]


def scored(host: Host, step: int, right: list[bool], *, truncated: set[int] = frozenset()) -> TableRef:  # type: ignore[assignment]
    parts = completions(host, answers(host, step, right), truncated=truncated)
    return score(host, host.write_rollout(step, step, parts), step)


def finish(host: Host, table: TableRef, step: int) -> tuple[TableRef, dict[str, float]]:
    """The finished table and its metrics; the trainer reads the same of it as of what it is handed in memory."""
    samples = host.samples(table)
    finished, metrics = host.advantages(table, samples, step)
    assert contents(samples) == contents(finished)
    return finished, metrics


def score(host: Host, table: TableRef, step: int) -> TableRef:
    return host.score(table, host.grade(table), step)


def contents(table: TableRef | pa.Table) -> list[dict[str, Any]]:
    """What the trainer reads of a table."""
    return [vars_of(sample) for sample in read_samples(table)]


def vars_of(sample: Sample) -> dict[str, Any]:
    """A sample's fields, arrays as their type and values."""
    fields = {field.name: getattr(sample, field.name) for field in dataclasses.fields(sample)}
    return {
        name: (value.dtype, value.tolist()) if isinstance(value, np.ndarray) else value
        for name, value in fields.items()
    }


def column(table: TableRef, name: str) -> list[Any]:
    values: list[Any] = read_table(table).column(name).to_pylist()
    return values


def test_requests_go_group_by_group_with_a_seed_of_their_own(shared: Host) -> None:
    problems = shared.problems.of_step(1)
    requests = shared.requests(1)
    assert [request.prompt_ids for request in requests] == [p.prompt_ids for p in problems for _ in range(4)]
    assert [r.seed for r in requests] == [sample_seed(0, 1, p.id, i) for p in problems for i in range(4)]
    assert shared.requests(1) == requests
    seeds = [r.seed for step in range(3) for r in shared.requests(step)]
    assert len(set(seeds)) == 24


def test_another_run_seed_gives_other_samples_of_other_problems(data: Path, tmp_path: Path, shared: Host) -> None:
    other = make_host(data, tmp_path, seed=1)
    try:
        assert {r.seed for r in other.requests(0)}.isdisjoint(r.seed for r in shared.requests(0))
        orders = [[p.id for step in range(3) for p in host.problems.of_step(step)] for host in (other, shared)]
        assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]
    finally:
        other.close()


def test_forced_lengths_are_dealt_to_the_samples_in_turn(data: Path, tmp_path: Path) -> None:
    host = make_host(data, tmp_path, rollout__forced_lengths=[3, 7, 16], rollout__ignore_eos=True)
    try:
        assert [request.max_tokens for request in host.requests(0)] == [3, 7, 16, 3, 7, 16, 3, 7]
        assert [request.max_tokens for request in host.evaluation_requests("sampled")] == [0] * 6
    finally:
        host.close()


def test_evaluation_asks_the_same_at_every_step_and_never_what_training_asks(shared: Host) -> None:
    before, after = shared.evaluation_requests("sampled"), shared.evaluation_requests("sampled")
    assert before == after and len(before) == NUM_TEST * 2
    assert [r.seed for r in shared.evaluation_requests("greedy")] == [r.seed for r in before[::2]]
    assert {r.seed for r in before}.isdisjoint(r.seed for step in range(9) for r in shared.requests(step))
    held_out = {problem.id for problem in shared.problems.evaluation}
    assert held_out.isdisjoint(p.id for step in range(9) for p in shared.problems.of_step(step))


def test_evaluation_samples_as_training_does_but_greedy_at_temperature_0(data: Path, tmp_path: Path) -> None:
    host = make_host(data, tmp_path, rollout__temperature=0.7, evaluation__max_completion_tokens=9)
    try:
        assert (host.sampling().temperature, host.sampling().max_tokens) == (0.7, 16)
        sampled, greedy = (host.sampling(mode, evaluation=True) for mode in ("sampled", "greedy"))
        assert (sampled.temperature, sampled.max_tokens) == (0.7, 9)
        assert (greedy.temperature, greedy.max_tokens) == (0.0, 9)
    finally:
        host.close()


def test_the_table_grows_by_the_columns_of_each_stage(data: Path, tmp_path: Path) -> None:
    host = make_host(data, tmp_path)
    try:
        parts = completions(host, answers(host, 0, [True] * 3 + [False] * 5))
        rollout = host.write_rollout(0, 5, parts[:3], parts[3:])
        rewards = host.grade(rollout)
        assert host.grade(rollout) == rewards  # begun with the table, then of the table
        samples = contents(host.samples(rollout, rewards))
        graded = host.score(rollout, rewards, 0)
        finished, _ = finish(host, graded, 0)
        assert samples == contents(finished)  # the trainer need not wait for the tables
    finally:
        host.close()
    assert read_table(rollout).column_names == ROLLOUT_COLUMNS
    assert read_table(graded).column_names == ROLLOUT_COLUMNS + REWARD_COLUMNS
    assert read_table(finished).column_names == [*ROLLOUT_COLUMNS, *REWARD_COLUMNS, "advantage"]
    rows = read_table(finished).to_pylist()
    assert [(row["run_id"], row["step"], row["policy_version"]) for row in rows] == [("run-1", 0, 5)] * 8
    assert [row["group_id"] for row in rows] == [0] * 4 + [1] * 4
    assert [row["sample_index"] for row in rows] == [0, 1, 2, 3] * 2
    assert [row["seed"] for row in rows] == [request.seed for request in host.requests(0)]
    assert [row["prompt_ids"] for row in rows] == [request.prompt_ids for request in host.requests(0)]
    assert [row["completion_ids"] for row in rows] == [completion.token_ids for completion in parts]
    assert rows[0]["completion"] == rows[0]["answer"]  # the end token is not part of the text
    for stage, table in (("rollout", rollout), ("reward", graded), ("advantage", finished)):
        assert find_table(tmp_path / "steps" / "000000" / f"{stage}.parquet") == table


def test_the_samplers_logprobs_are_a_column_when_they_were_recorded(data: Path, tmp_path: Path) -> None:
    host = make_host(data, tmp_path)
    try:
        parts = [
            Completion(c.token_ids, "stop", [-0.5] * len(c.token_ids))
            for c in completions(host, answers(host, 0, [True] * 8))
        ]
        table = host.write_rollout(0, 0, parts)
        assert column(table, "sampler_logprobs") == [completion.logprobs for completion in parts]
        finished, _ = finish(host, score(host, table, 0), 0)
        assert [list(s.sampler_logprobs) for s in read_samples(finished)] == [c.logprobs for c in parts]
    finally:
        host.close()


@pytest.mark.parametrize(
    ("truncated_reward", "rewards", "advantages", "correct"),
    [
        ("zero", [0.0, 1.0, 0.0, 0.0], [-0.25, 0.75, -0.25, -0.25], [False, True, False, False]),
        ("keep", [1.0, 1.0, 0.0, 0.0], [0.5, 0.5, -0.5, -0.5], [True, True, False, False]),
    ],
)
def test_a_truncated_completion_scores_zero_and_stays_in_its_group(
    data: Path,
    tmp_path: Path,
    truncated_reward: str,
    rewards: list[float],
    advantages: list[float],
    correct: list[bool],
) -> None:
    host = make_host(data, tmp_path, reward__truncated_reward=truncated_reward)
    try:
        table = scored(host, 0, [True, True, False, False] * 2, truncated={0, 4})
        finished, metrics = finish(host, table, 0)
    finally:
        host.close()
    assert column(table, "reward") == rewards * 2
    assert column(table, "reward_gsm8k") == [1.0, 1.0, 0.0, 0.0] * 2
    assert column(table, "correct") == correct * 2
    assert column(finished, "advantage") == advantages * 2
    samples = read_samples(finished)
    assert [sample.advantage for sample in samples] == advantages * 2
    assert host.tokenizer.eos_token_id not in samples[0].completion_ids
    assert samples[1].completion_ids[-1] == host.tokenizer.eos_token_id
    assert (metrics["rollout/truncated_share"], metrics["advantage/trained_groups"]) == (0.25, 2.0)


def test_a_completion_that_ends_at_the_limit_by_itself_is_not_truncated(shared: Host) -> None:
    texts = answers(shared, 40, [True] + [False] * 7)
    parts = completions(shared, texts)
    assert parts[0].token_ids[-1] == shared.tokenizer.eos_token_id and parts[0].finish_reason == "stop"
    stopped = [Completion(parts[0].token_ids[:-1], "stop", None), *parts[1:]]  # a stop string leaves no end token
    table = score(shared, shared.write_rollout(40, 0, stopped), 40)
    assert column(table, "reward")[0] == 1.0


def test_rewards_are_shaped_after_truncation_and_the_penalty_comes_last(data: Path, tmp_path: Path) -> None:
    shaping = {"reward__bias": -0.5, "reward__scaling": 4.0, "reward__clip": 1.5}
    penalty = {f"reward__overlong__{k}": v for k, v in (("enabled", True), ("buffer_tokens", 8), ("penalty", 2.0))}
    host = make_host(data, tmp_path, **shaping, **penalty)
    try:
        end = host.tokenizer.eos_token_id
        right = host.problems.of_step(0)[0].problem.answer.removeprefix("sum ")
        short = host.tokenizer.encode(right, add_special_tokens=False)
        assert len(short) < 8
        lengths = [8, 10, 16, 16]  # penalty 2 * (length - 8) / 8: 0, .5, 2, 2
        ids = [[*short, *host.tokenizer.encode(" " * (n - len(short) - 1)), end] for n in lengths]
        assert [len(tokens) for tokens in ids] == lengths
        ends = ["stop", "stop", "stop", "length"]
        wrong = completions(host, ["no"] * 4)
        parts = [Completion(tokens, reason, None) for tokens, reason in zip(ids, ends, strict=True)]
        table = score(host, host.write_rollout(0, 0, parts + wrong), 0)
    finally:
        host.close()
    # right: (1 - .5) * 4 = 2, clipped to 1.5; wrong and truncated: -2, clipped to -1.5
    assert column(table, "reward")[:5] == pytest.approx([1.5, 1.0, -0.5, -3.5, -1.5])
    assert column(table, "correct")[:5] == [True, True, True, False, False]


def test_weights_combine_and_the_first_function_decides_what_is_correct(data: Path, tmp_path: Path) -> None:
    host = make_host(data, tmp_path, reward__functions={"gsm8k": 1.0, "format": 0.25})
    try:
        texts = answers(host, 0, [True, False, False, False] * 2)
        texts[2] = texts[6] = "none"
        table = score(host, host.write_rollout(0, 0, completions(host, texts)), 0)
    finally:
        host.close()
    assert column(table, "reward") == [1.25, 0.25, 0.0, 0.25] * 2
    assert column(table, "reward_format") == [1.0, 1.0, 0.0, 1.0] * 2
    assert column(table, "correct") == [True, False, False, False] * 2


def test_a_grader_that_hangs_or_raises_costs_its_sample_and_is_counted(data: Path, tmp_path: Path) -> None:
    name = "tests.unit.rewards_graders.trouble"
    host = make_host(data, tmp_path, reward__functions={name: 1.0}, reward__timeout_s=0.5)
    try:
        texts = ["good", "sleep 60", "raise ouch", "value 0.5", "good", "good", "good", "good"]
        table = score(host, host.write_rollout(0, 0, completions(host, texts)), 0)
        finished, metrics = finish(host, table, 0)
    finally:
        host.close()
    assert column(table, "grader_status") == ["ok", "timeout", "error", "ok", "ok", "ok", "ok", "ok"]
    assert "ouch" in column(table, "grader_message")[2]
    assert column(table, "reward") == [1.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0, 1.0]
    assert column(table, "correct") == [True, False, False, False, True, True, True, True]
    assert column(finished, "advantage") == [0.625, -0.375, -0.375, 0.125, 0.0, 0.0, 0.0, 0.0]
    assert (metrics["grader/timeouts"], metrics["grader/errors"]) == (1.0, 1.0)


def test_advantages_are_keyed_by_group_whatever_the_order_of_rows(data: Path, tmp_path: Path) -> None:
    host = make_host(data, tmp_path)
    try:
        table = scored(host, 0, [True, False, False, False, True, True, True, False])
        plain, _ = finish(host, table, 0)
        rows = read_table(table)
        order = [5, 0, 7, 2, 4, 1, 6, 3]
        shuffled = write_table(tmp_path / "shuffled.parquet", rows.take(order).to_pydict())
        mixed, _ = finish(host, shuffled, 1)
        lost = write_table(tmp_path / "lost.parquet", rows.take([0, 1, 2, 4, 5, 6, 7]).to_pydict())
        incomplete, metrics = finish(host, lost, 2)
    finally:
        host.close()
    expected = [0.75, -0.25, -0.25, -0.25, 0.25, 0.25, 0.25, -0.75]
    assert column(plain, "advantage") == expected
    assert column(mixed, "advantage") == [expected[i] for i in order]
    third = 1 / 3
    assert column(incomplete, "advantage") == pytest.approx([2 * third, -third, -third, 0.25, 0.25, 0.25, -0.75])
    assert (metrics["rollout/incomplete_groups"], metrics["rollout/lost_samples"]) == (1.0, 1.0)


def test_a_lost_completion_leaves_its_row_out_and_the_others_where_they_belong(data: Path, tmp_path: Path) -> None:
    host = make_host(data, tmp_path)
    try:
        parts: list[Completion | None] = [*completions(host, answers(host, 0, [True, False, True, False] * 2))]
        parts[1] = parts[4] = parts[5] = None
        finished, metrics = finish(host, score(host, host.write_rollout(0, 0, parts[:3], parts[3:]), 0), 0)
        requests = host.requests(0)
    finally:
        host.close()
    kept = [0, 2, 3, 6, 7]
    rows = read_table(finished).to_pylist()
    assert [(row["group_id"], row["sample_index"]) for row in rows] == [(0, 0), (0, 2), (0, 3), (1, 2), (1, 3)]
    assert [row["prompt_ids"] for row in rows] == [requests[i].prompt_ids for i in kept]
    assert [row["seed"] for row in rows] == [requests[i].seed for i in kept]
    assert [row["completion_ids"] for row in rows] == [parts[i].token_ids for i in kept]  # type: ignore[union-attr]
    assert [row["reward"] for row in rows] == [1.0, 1.0, 0.0, 1.0, 0.0]
    third = 1 / 3
    assert [row["advantage"] for row in rows] == pytest.approx([third, third, -2 * third, 0.5, -0.5])
    assert (metrics["rollout/lost_samples"], metrics["rollout/incomplete_groups"]) == (3.0, 2.0)


def test_a_group_that_is_lost_whole_is_incomplete_and_one_left_alone_has_no_signal(data: Path, tmp_path: Path) -> None:
    host = make_host(data, tmp_path, adv_norm__leave_one_out=True)
    try:
        (only,) = completions(host, answers(host, 0, [True] * 8)[4:5])
        lost: list[Completion | None] = [None] * 7
        finished, metrics = finish(host, score(host, host.write_rollout(0, 0, [*lost[:4], only, *lost[4:]]), 0), 0)
    finally:
        host.close()
    assert (column(finished, "group_id"), column(finished, "advantage")) == ([1], [0.0])
    assert (metrics["rollout/lost_samples"], metrics["rollout/incomplete_groups"]) == (7.0, 2.0)


def test_a_rollout_or_an_evaluation_that_lost_everything_is_an_error(shared: Host) -> None:
    with pytest.raises(RuntimeError, match="lost all of the 8 completions"):
        shared.write_rollout(60, 0, [None] * 8)
    with pytest.raises(RuntimeError, match="lost all of the 3 completions"):
        shared.write_evaluation(60, 0, ["greedy", "sampled"], [None] * 3, [None] * 6)
    with pytest.raises(ValueError, match="shorter"):  # an engine that answers fewer than it was asked
        shared.write_rollout(60, 0, [*completions(shared, ["1"] * 7)])


def test_a_reward_function_that_fails_too_often_ends_the_step_and_an_evaluation(data: Path, tmp_path: Path) -> None:
    functions = {"tests.unit.rewards_graders:trouble": 1.0}
    host = make_host(data, tmp_path, reward__functions=functions, reward__max_failed_share=0.25)
    try:
        few = host.write_rollout(0, 0, completions(host, ["value NaN", "raise ouch", *["good"] * 6]))
        many = host.write_rollout(1, 0, completions(host, ["raise \x1b[31m", "value NaN", "raise ouch", *["good"] * 5]))
        assert column(score(host, few, 0), "reward") == [0.0, 0.0] + [1.0] * 6
        with pytest.raises(
            RuntimeError, match=r"3 of 8 completions could not be graded.*max_failed_share = 0\.25"
        ) as e:
            score(host, many, 1)
        with pytest.raises(RuntimeError, match="3 of 3 completions could not be graded"):
            host.write_evaluation(0, 0, ["greedy"], completions(host, ["raise ouch"] * 3))
    finally:
        host.close()
    assert "the first is error: '" in str(e.value) and "\\x1b[31m" in str(e.value) and "\x1b" not in str(e.value)
    assert find_table(tmp_path / "steps" / "000001" / "reward.parquet") is None


def test_only_the_columns_of_a_sample_are_read_of_a_table(shared: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    table, _ = finish(shared, scored(shared, 61, [True, False] * 4), 61)
    read, asked = pq.read_table, []
    monkeypatch.setattr(
        pq, "read_table", lambda *args, **options: asked.append(options["columns"]) or read(*args, **options)
    )
    samples = read_samples(table)
    assert [sorted(columns) for columns in asked] == [["advantage", "completion_ids", "group_id", "prompt_ids"]]
    assert [s.advantage for s in samples] == [0.5, -0.5] * 4 and len(samples[0].sampler_logprobs) == 0


def test_a_stored_table_is_scored_again_with_another_reward(data: Path, tmp_path: Path, shared: Host) -> None:
    table = shared.write_rollout(50, 0, completions(shared, answers(shared, 50, [True] + [False] * 7)))
    assert column(score(shared, table, 50), "reward") == [1.0] + [0.0] * 7
    other = make_host(data, tmp_path, reward__functions={"tests.unit.rewards_graders:length": 1.0})
    try:
        rescored = score(other, table, 50)
    finally:
        other.close()
    assert column(rescored, "reward") == [float(len(text)) for text in column(table, "completion")]
    assert column(rescored, "completion_ids") == column(table, "completion_ids")


def test_a_reward_function_gets_the_other_columns_of_the_row(data: Path, tmp_path: Path) -> None:
    host = make_host(data, tmp_path, reward__functions={"tests.unit.rewards_graders:level": 1.0})
    try:
        table = score(host, host.write_rollout(0, 0, completions(host, answers(host, 0, [True] * 8))), 0)
    finally:
        host.close()
    levels = [float(question.split()[0]) for question in column(table, "question")]  # the i of `i + 1`
    assert column(table, "reward") == levels and len(set(levels)) == 2


def test_an_evaluation_table_tells_greedy_from_sampled(data: Path, tmp_path: Path) -> None:
    host = make_host(data, tmp_path)
    try:
        texts = [problem.problem.answer for problem in host.problems.evaluation]
        sampled = [text for right in texts for text in (right, "#### 0")]
        table = host.write_evaluation(3, 3, ["greedy", "sampled"], completions(host, texts), completions(host, sampled))
    finally:
        host.close()
    assert column(table, "mode") == ["greedy"] * 3 + ["sampled"] * 6
    assert column(table, "correct") == [True] * 3 + [True, False] * 3
    requests = host.evaluation_requests("greedy") + host.evaluation_requests("sampled")
    assert column(table, "seed") == [request.seed for request in requests]
    assert column(table, "step") == [3] * 9
    assert find_table(tmp_path / "evaluations" / "000003.parquet") == table


def test_an_evaluation_table_leaves_lost_completions_out_of_their_mode(data: Path, tmp_path: Path) -> None:
    host = make_host(data, tmp_path)
    try:
        greedy: list[Completion | None] = [*completions(host, ["#### 101", "no", "no"])]
        sampled: list[Completion | None] = [*completions(host, ["no"] * 6)]
        greedy[1] = sampled[0] = sampled[3] = None
        parts = (greedy[:2], greedy[2:], sampled[:3], sampled[3:])  # of two engines
        table = host.write_evaluation(3, 3, ["greedy", "sampled"], *parts)
    finally:
        host.close()
    ids = [problem.id for problem in host.problems.evaluation]
    assert column(table, "problem_id") == [ids[i] for i in (0, 2, 0, 1, 2, 2)]
    assert column(table, "sample_index") == [0, 0, 1, 0, 0, 1]
    assert column(table, "mode") == ["greedy"] * 2 + ["sampled"] * 4


def test_probes_are_prompts_and_answers_of_the_held_out_problems(shared: Host) -> None:
    for (prompt_ids, completion_ids), problem in zip(shared.probes(), shared.problems.evaluation, strict=False):
        assert prompt_ids == problem.prompt_ids
        assert shared.tokenizer.decode(completion_ids) == problem.problem.answer
    assert len(shared.probes()) == NUM_TEST


def test_the_description_counts_and_digests_the_data(shared: Host) -> None:
    description = shared.describe()
    assert description["train"]["num_problems"] == NUM_TRAIN
    assert description["evaluation"]["num_problems"] == NUM_TEST
    assert description["train"]["digest"] != description["evaluation"]["digest"]
    assert len(description["train"]["digest"]) == 64
    assert set(description["dropped"].values()) == {0}


def test_a_host_that_only_evaluates_reads_the_held_out_problems_alone(data: Path, shared: Host, tmp_path: Path) -> None:
    config = make_config(data, data__train="/no/train.jsonl")
    host = Host(config, str(data / "model"), "run-1", str(tmp_path), train=False)
    try:
        assert host.evaluation_requests("sampled") == shared.evaluation_requests("sampled")
        assert host.describe() == {
            "evaluation": shared.describe()["evaluation"],
            "dropped": {"evaluation_long_prompts": 0},
        }
    finally:
        host.close()
