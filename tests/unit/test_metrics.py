"""Metrics of sample and evaluation tables against numbers counted by hand."""

import dataclasses
import json
import math
from typing import Any

import pyarrow as pa
import pytest

from drgrpo.metrics import EvaluationSummary, evaluation_metrics, paired_difference, sample_metrics


def sample_table(**changes: list[Any]) -> pa.Table:
    """Group a: one right, one wrong, one truncated; group b: all right (two of three came back)."""
    columns = {
        "problem_id": ["p", "p", "p", "q", "q"],
        "group_id": ["a", "a", "b", "a", "b"],
        "completion": ["x", "y", "z", "y", "z"],
        "completion_ids": [[1] * 4, [1] * 6, [1] * 2, [1] * 10, [1] * 2],
        "finish_reason": ["stop", "stop", "stop", "length", "stop"],
        "reward": [1.1, 0.1, 1.1, 0.0, 1.1],
        "reward_gsm8k": [1.0, 0.0, 1.0, 0.0, 1.0],
        "reward_format": [1.0, 1.0, 1.0, 0.0, 1.0],
        "correct": [True, False, True, False, True],
        "grader_status": ["ok", "timeout", "ok", "error", "ok"],
        "advantage": [0.7, -0.3, 0.0, -0.4, 0.0],
    }
    return pa.table(columns | changes)


def test_sample_metrics_are_those_counted_by_hand() -> None:
    metrics = sample_metrics(sample_table(), num_groups=3, group_size=3, max_completion_tokens=10)
    mean = 3.4 / 5
    std = math.sqrt((3 * (1.1 - mean) ** 2 + (0.1 - mean) ** 2 + mean**2) / 4)
    assert metrics == pytest.approx(
        {
            "reward/mean": mean,
            "reward/std": std,
            "reward/gsm8k": 0.6,
            "reward/format": 0.8,
            "rollout/accuracy": 0.6,
            "completion_length/mean": 4.8,
            "completion_length/correct": 8 / 3,
            "completion_length/incorrect": 6.0,
            "completion_length/truncated": 10.0,
            "completion_length/max": 10.0,
            "completion_length/limit_share": 0.48,
            "rollout/truncated_share": 0.2,
            "rollout/completion_tokens": 24.0,
            "rollout/num_completions": 5.0,
            "rollout/unique_share": 0.6,  # of five, y repeats in a and z in b
            "rollout/zero_variance_share": 0.5,
            "rollout/all_right_share": 0.5,
            "rollout/all_wrong_share": 0.0,
            "rollout/incomplete_groups": 2.0,  # b, and one that came back with nothing
            "rollout/lost_samples": 4.0,
            "grader/timeouts": 1.0,
            "grader/errors": 1.0,
            "advantage/abs_mean": 1.4 / 5,
            "advantage/trained_groups": 1.0,
        }
    )


def test_a_category_without_samples_has_no_key() -> None:
    metrics = sample_metrics(
        sample_table(correct=[False] * 5, finish_reason=["stop"] * 5),
        num_groups=3,
        group_size=3,
        max_completion_tokens=10,
    )
    assert "completion_length/correct" not in metrics and "completion_length/truncated" not in metrics
    assert metrics["completion_length/incorrect"] == pytest.approx(4.8)
    assert metrics["rollout/all_wrong_share"] == 1.0


def test_a_truncated_completion_that_is_right_counts_as_truncated_and_as_accurate() -> None:
    metrics = sample_metrics(
        sample_table(finish_reason=["length"] * 5), num_groups=3, group_size=3, max_completion_tokens=10
    )
    assert metrics["rollout/accuracy"] == pytest.approx(0.6)
    assert metrics["completion_length/truncated"] == pytest.approx(4.8)
    assert "completion_length/correct" not in metrics


def test_a_table_before_grading_status_and_advantages_and_an_empty_one_give_no_nan() -> None:
    table = sample_table().drop_columns(["advantage", "grader_status"])
    metrics = sample_metrics(table, num_groups=3, group_size=3, max_completion_tokens=10)
    empty = sample_metrics(sample_table().slice(0, 0), num_groups=3, group_size=3, max_completion_tokens=10)
    assert "advantage/abs_mean" not in metrics and "grader/errors" not in metrics
    assert empty["rollout/num_completions"] == 0.0 and "reward/mean" not in empty
    assert all(math.isfinite(value) for value in [*metrics.values(), *empty.values()])


def test_a_missing_correctness_counts_as_wrong() -> None:
    table = sample_table(correct=[True, None, None, None, None])
    assert sample_metrics(table, num_groups=3, group_size=3, max_completion_tokens=10)[
        "rollout/accuracy"
    ] == pytest.approx(0.2)


def evaluation_table(right: dict[str, list[bool]], greedy: dict[str, bool]) -> pa.Table:
    rows = [(p, "sampled", r) for p, outcomes in right.items() for r in outcomes] + [
        (p, "greedy", r) for p, r in greedy.items()
    ]
    return pa.table(
        {
            "problem_id": [row[0] for row in rows],
            "mode": [row[1] for row in rows],
            "correct": [row[2] for row in rows],
            "completion_ids": [[1] * (8 if row[1] == "sampled" else 100) for row in rows],
            "finish_reason": ["stop"] * len(rows),
        }
    )


BEFORE = evaluation_table(
    {"p": [True, False], "q": [False, False], "r": [True, True]}, {"p": False, "q": False, "r": True}
)
AFTER = evaluation_table({"r": [True, True], "q": [True, False], "p": [True, True]}, {"p": True, "q": False, "r": True})


def test_evaluation_scores_are_means_over_problems() -> None:
    summary = evaluation_metrics(BEFORE, k=2)
    metrics = summary.metrics()
    assert summary.scores["avg_at_k"] == {"p": 0.5, "q": 0.0, "r": 1.0}
    assert summary.scores["pass_at_k"] == {"p": 1.0, "q": 0.0, "r": 1.0}
    assert metrics["evaluation/greedy"] == pytest.approx(1 / 3)
    assert metrics["evaluation/avg_at_k"] == pytest.approx(0.5)
    assert metrics["evaluation/pass_at_k"] == pytest.approx(2 / 3)
    assert metrics["evaluation/num_problems"] == 3.0 and metrics["evaluation/k"] == 2.0
    assert metrics["evaluation/completion_length/mean"] == 8.0
    assert metrics["evaluation/truncated_share"] == 0.0
    assert 0.0 <= metrics["evaluation/avg_at_k_low"] <= 0.5 <= metrics["evaluation/avg_at_k_high"] <= 1.0


def test_the_paired_difference_matches_problems_by_id_and_not_by_order() -> None:
    before, after = evaluation_metrics(BEFORE, k=2), evaluation_metrics(AFTER, k=2)
    mean, low, high = paired_difference(before, after)
    assert mean == pytest.approx((0.5 + 0.5 + 0.0) / 3)
    assert low == 0.0 and high == pytest.approx(0.5)
    assert paired_difference(before, after, "greedy")[0] == pytest.approx(1 / 3)


def test_evaluations_of_different_problems_are_not_compared() -> None:
    other = evaluation_metrics(evaluation_table({"z": [True]}, {}), k=1)
    with pytest.raises(ValueError, match="share no problem"):
        paired_difference(evaluation_metrics(BEFORE, k=2), other)


def test_a_greedy_only_evaluation_has_no_sampled_scores_and_a_lost_sample_does_not_stop_pass_at_k() -> None:
    greedy = evaluation_metrics(evaluation_table({}, {"p": True}), k=4)
    short = evaluation_metrics(evaluation_table({"p": [True, False], "q": [False]}, {}), k=2)
    assert set(greedy.scores) == {"greedy"} and greedy.metrics()["evaluation/completion_length/mean"] == 100.0
    assert short.scores["pass_at_k"] == {"p": 1.0, "q": 0.0}


def test_a_summary_survives_json() -> None:
    summary = evaluation_metrics(BEFORE, k=2)
    assert EvaluationSummary(**json.loads(json.dumps(dataclasses.asdict(summary)))) == summary
