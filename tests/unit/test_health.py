"""Health gates: when each becomes true, on records written by hand."""

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from drgrpo.config.health import HealthConfig
from drgrpo.config.paths import FIELDS
from drgrpo.health import Finding, HealthStop, RollBack, Rule, findings, findings_page
from drgrpo.health.readings import readings
from drgrpo.health.remedies import REMEDIES
from drgrpo.health.told import is_told, tell

GATES = (
    *("truncated_share", "zero_variance_share", "entropy", "mismatch_kl"),
    *("reward_drop", "grad_norm", "throughput_drop"),
)


def records(metric: str, values: Sequence[float | None], first: int = 0) -> list[dict[str, float]]:
    """One record a step from `first` on; None: the step did not measure it."""
    return [
        {"step": step} | ({} if value is None else {metric: value}) for step, value in enumerate(values, start=first)
    ]


def check(
    rule: Rule, values: Sequence[float | None], *, step: int | None = None, evaluations: Any = ()
) -> list[Finding]:
    history = records(rule.metric, values)
    return findings([rule], history, evaluations, step=len(values) - 1 if step is None else step)


def at(found: Sequence[Finding]) -> list[int]:
    return [finding.step for finding in found]


HIGH = Rule("truncated_share", "rollout/truncated_share", "above", "warn", limit=0.8, patience=3)
LOW = Rule("entropy", "update/entropy", "below", "warn", limit=0.1, patience=2)
NORM = Rule("grad_norm", "update/grad_norm", "times_median", "warn", limit=4.0, patience=2, window=4)
SPEED = Rule("throughput_drop", "tokens_per_s", "share_of_median", "warn", limit=0.5, patience=1, window=3)
DROP = Rule("reward_drop", "evaluation/avg_at_k", "below_best", "rollback", limit=0.1, patience=2)


def test_a_gate_becomes_true_when_the_last_steps_all_lie_beyond_the_limit() -> None:
    assert check(HIGH, [0.9, 0.9, 0.8, 0.9, 0.9]) == []  # the limit itself is not beyond it
    (found,) = check(HIGH, [0.5, 0.9, 0.85, 0.95])
    assert (found.step, found.seen, found.limit, found.last_good) == (3, 0.95, 0.8, 0)
    assert found.message == "`rollout/truncated_share` lay above 0.8 at 3 steps, 1 to 3; the last was 0.95."
    assert found.is_open


def test_a_hundred_bad_steps_are_one_finding_and_the_next_comes_after_a_good_one() -> None:
    values = [0.9] * 100 + [0.1] + [0.9] * 5
    assert at(check(HIGH, values)) == [2, 103]
    assert [finding.is_open for finding in check(HIGH, values)] == [False, True]
    # Whatever step one looks at, the first finding is the same, but for whether it is still so.
    first = {replace(check(HIGH, values, step=step)[0], is_open=True) for step in range(2, 106)}
    assert len(first) == 1


def test_steps_without_the_metric_leave_a_gate_as_it_is() -> None:
    nan = math.nan
    (found,) = check(LOW, [1.0, 0.05, None, nan, 0.04, None])
    assert (found.step, found.last_good, found.is_open) == (4, 0, True)
    assert check(LOW, [None, nan, 0.05, nan]) == []
    assert check(LOW, []) == []


def test_records_beyond_the_present_step_do_not_count() -> None:
    values = [0.1, 0.9, 0.9, 0.9, 0.1]
    assert check(HIGH, values, step=2) == []
    assert [f.is_open for f in check(HIGH, values, step=3)] == [True]
    assert [f.is_open for f in check(HIGH, values, step=4)] == [False]


def test_a_gate_that_is_off_finds_nothing() -> None:
    assert check(replace(HIGH, action="off"), [1.0] * 10) == []


def test_entropy_collapse_is_a_value_below_the_limit() -> None:
    (found,) = check(LOW, [2.0, 1.0, 0.4, 0.1, 0.09, 0.02, 0.01])
    assert (found.step, found.seen, found.limit, found.last_good) == (5, 0.02, 0.1, 3)
    assert found.message == "`update/entropy` lay below 0.1 at 2 steps, 4 to 5; the last was 0.02."


def test_the_gradient_norm_is_held_against_the_median_of_the_steps_before_the_streak() -> None:
    # Medians of the 4 before: of 1, 2, 3, 2 it is 2, so the bar is 8. Both 9 and 9 lie above it.
    (found,) = check(NORM, [1.0, 2.0, 3.0, 2.0, 9.0, 9.0])
    assert (found.step, found.seen, found.limit, found.last_good) == (5, 9.0, 8.0, 3)
    assert "above 8 (4 times the median 2 of the 4 readings before) at 2 steps, 4 to 5" in found.message
    # One of the two is not enough, and the bad one beside it does not move the bar.
    assert check(NORM, [1.0, 2.0, 3.0, 2.0, 9.0, 7.0]) == []


def test_a_median_needs_half_of_its_window() -> None:
    assert check(NORM, [1.0, 9.0, 9.0]) == []  # one value before: too few of 4
    assert at(check(NORM, [1.0, 1.0, 9.0, 9.0])) == [3]
    wide = replace(NORM, window=9)
    assert check(wide, [1.0] * 4 + [9.0] * 2) == [] and at(check(wide, [1.0] * 5 + [9.0] * 2)) == [6]


def test_what_stays_becomes_the_usual() -> None:
    # From index 6 on half of the 4 before a pair are 9s: the median of 1, 1, 9, 9 is 5, the bar 20.
    values = [1.0] * 6 + [9.0] * 8
    (found,) = check(NORM, values)
    assert (found.step, found.is_open) == (7, False)
    assert at(check(NORM, [*values, 50.0, 50.0])) == [7, 15]


def test_a_gradient_norm_that_is_not_finite_lies_beyond_any_limit_and_out_of_the_median() -> None:
    for lost in (math.nan, math.inf):
        (found,) = check(NORM, [1.0, 1.0, lost, lost])
        assert (found.step, found.seen, found.limit) == (3, math.inf, 4.0)
        assert found.message.endswith("the last was not a finite number.")
    assert check(NORM, [1.0, 1.0, math.nan, 1.0, 3.9, 3.9]) == []
    # The median of 1 and 2 is 1.5, whatever lies beside them: 9 stays above 6.
    (found,) = check(NORM, [1.0, 2.0, math.nan, math.nan, 9.0, 9.0])
    assert (found.step, found.is_open) == (3, True)


def test_a_gradient_norm_of_zero_is_no_measurement() -> None:
    assert [r.step for r in readings(NORM, records("update/grad_norm", [0.0, 0.5, None, 0.0]), [], step=3)] == [1]


def speeds(values: Sequence[float | None]) -> list[dict[str, float]]:
    """Records of steps of 10 s and 10 times the value in tokens; None: the completions came from disk."""
    return [
        {"step": step, "seconds/step": 10.0, "rollout/completion_tokens": 10 * (value or 99.0)}
        | ({} if value is None else {"rollout/tokens_per_s": 1e6})
        for step, value in enumerate(values)
    ]


def test_throughput_is_the_tokens_of_a_step_over_all_of_its_seconds() -> None:
    history = speeds([100.0, 80.0, 120.0, None, 40.0])
    assert [r.value for r in readings(SPEED, history, [], step=4)] == [100.0, 80.0, 120.0, 40.0]
    (found,) = findings([SPEED], history, [], step=4)
    assert (found.step, found.seen, found.limit) == (4, 40.0, 50.0)
    assert found.message == (
        "`tokens_per_s` lay below 50 (0.5 times the median 100 of the 3 readings before) at step 4; it was 40."
    )
    assert findings([SPEED], speeds([100.0, 80.0, 120.0, 51.0]), [], step=3) == []


def evaluations(values: Sequence[float], every: int = 4) -> list[dict[str, float]]:
    return [{"step": every * index, "evaluation/avg_at_k": value} for index, value in enumerate(values)]


def test_reward_drop_counts_evaluations_that_lie_a_margin_under_the_best_one() -> None:
    scores = evaluations([0.25, 0.5, 0.375, 0.4375, 0.25, 0.25, 0.25])  # after 0, 4, 8, ... iterations
    # 0.375 is 0.125 under the best, 0.4375 only 0.0625: the first two in a row are those after 16 and 20.
    (found,) = findings([DROP], [], scores, step=27)
    assert (found.step, found.seen, found.limit, found.last_good) == (19, 0.25, 0.4, 4)
    assert found.message == (
        "`evaluation/avg_at_k` lay below 0.4 (0.1 under the best, 0.5 after 4 iterations) at 2 evaluations, after "
        "16 to 20 iterations; the last was 0.25."
    )
    assert findings([DROP], [], scores, step=18) == []  # the evaluation after 20 iterations belongs to step 19
    assert at(findings([DROP], [], scores, step=19)) == [19]


def test_a_best_evaluation_that_came_later_says_nothing_of_the_ones_before() -> None:
    assert findings([DROP], [], evaluations([0.5, 0.45, 0.45, 0.9]), step=11) == []


def test_a_first_evaluation_is_no_drop() -> None:
    assert findings([replace(DROP, patience=1)], [], evaluations([0.0]), step=0) == []
    (found,) = findings([replace(DROP, patience=1)], [], evaluations([0.5, 0.125]), step=3)
    assert (found.step, found.last_good) == (3, 0) and found.message.endswith(
        "at the evaluation after 4 iterations; it was 0.125."
    )


def test_sampler_logprobs_that_are_no_numbers_are_seen_step_after_step() -> None:
    metric = "update/invalid_sampler_logprobs"
    (rule,) = [rule for rule in HealthConfig().rules() if rule.metric == metric]
    assert check(rule, [0.0, 3.0, 0.0, 0.0]) == []
    (found,) = check(rule, [0.0, 0.0, 3.0, 1.0])
    assert (found.gate, found.step, found.limit) == ("mismatch_kl", 3, 0.0)


def test_mismatch_is_watched_on_the_steps_tokens_and_on_the_probes() -> None:
    rules = HealthConfig.model_validate({"mismatch_kl": {"patience": 1}}).rules()
    history = [
        {"step": 0, "update/mismatch_k3": 0.009, "sync/mean_abs_logprob_diff": 0.02},
        {"step": 1, "update/mismatch_k3": 0.02, "sync/mean_abs_logprob_diff": 0.03},
        {"step": 2, "sync/mean_abs_logprob_diff": math.nan},
    ]
    found = findings(rules, history, [], step=2)
    assert [(f.gate, f.metric, f.step, f.seen, f.limit) for f in found] == [
        ("mismatch_kl", "update/mismatch_k3", 1, 0.02, 0.01),
        ("mismatch_kl", "sync/mean_abs_logprob_diff", 2, math.inf, 0.1),
    ]


HEALTHY: dict[str, list[float]] = {  # rounded, from a run that learned small sums in twelve steps
    "rollout/truncated_share": [0.67, 0.57, 0.54, 0.49, 0.45, 0.35, 0.34, 0.30, 0.16, 0.16, 0.14, 0.16],
    "rollout/zero_variance_share": [0.5, 0.38, 0.44, 0.25, 0.19, 0.38, 0.25, 0.38, 0.44, 0.31, 0.69, 0.63],
    "update/entropy": [2.41, 2.11, 2.0, 1.79, 1.55, 1.54, 1.06, 0.81, 0.72, 0.72, 0.70, 0.69],
    "update/grad_norm": [0.40, 0.64, 0.53, 0.63, 0.73, 0.66, 0.62, 0.56, 0.35, 0.64, 0.41, 0.40],
    "sync/mean_abs_logprob_diff": [9e-6, 2e-5, 1e-5, 2e-5, 2e-5, 2e-5, 1e-5, 1e-5, 1e-5, 8e-6, 2e-5, 2e-5],
    "rollout/tokens_per_s": [115.0, 93.0, 136.0, 109.0, 83.0, 132.0, 77.0, 80.0, 68.0, 79.0, 64.0, 70.0],
    "rollout/completion_tokens": [1812, 1656, 1671, 1578, 1582, 1509, 1501, 1460, 1270, 1269, 1239, 1269],
    "seconds/step": [44.0, 47.0, 32.0, 42.0, 48.0, 31.0, 48.0, 41.0, 40.0, 37.0, 32.0, 36.0],
}


def run_of(series: dict[str, list[float]]) -> list[dict[str, float]]:
    length = len(next(iter(series.values())))
    return [{"step": step, **{key: values[step] for key, values in series.items()}} for step in range(length)]


def test_a_healthy_run_trips_no_gate() -> None:
    scores = [{"step": 0, "evaluation/avg_at_k": 0.191}, {"step": 12, "evaluation/avg_at_k": 0.736}]
    rules = HealthConfig().rules()
    # Twice: the second half only after the medians have their window.
    history = run_of({key: values * 2 for key, values in HEALTHY.items()})
    assert [findings(rules, history, scores, step=step) for step in range(24)] == [[]] * 24


def test_a_collapse_trips_its_gates_each_in_its_order() -> None:
    # From step 12 on: one token repeated to the limit, nothing solved, a gradient that explodes and then vanishes.
    collapse: dict[str, list[float]] = {
        "rollout/truncated_share": [0.9, 1.0, 1.0, 1.0, 1.0, 1.0],
        "rollout/zero_variance_share": [0.6, 1.0, 1.0, 1.0, 1.0, 1.0],
        "update/entropy": [0.3, 0.01, 0.002, 0.001, math.nan, math.nan],
        "update/grad_norm": [40.0, 90.0, math.nan, 0.0, 0.0, 0.0],
        "sync/mean_abs_logprob_diff": [1e-5] * 6,
        "rollout/tokens_per_s": [90.0] * 6,
        "rollout/completion_tokens": [2048.0] * 6,
        "seconds/step": [45.0] * 6,
    }
    history = run_of({key: values + collapse[key] for key, values in HEALTHY.items()})
    scores = [
        {"step": step, "evaluation/avg_at_k": score} for step, score in ((0, 0.19), (12, 0.74), (15, 0.0), (18, 0.0))
    ]
    found = findings(HealthConfig().rules(), history, scores, step=17)
    assert [(f.gate, f.step, f.last_good) for f in found] == [
        ("grad_norm", 13, 11),  # the median of the twelve is (0.56 + 0.62) / 2: both lie above 5.9
        ("truncated_share", 14, 11),
        ("entropy", 15, 12),
        ("zero_variance_share", 17, 12),
        ("reward_drop", 17, 12),
    ]
    assert {f.gate for f in found if f.is_open} == {f.gate for f in found}
    assert found[0].limit == pytest.approx(5.9) and found[4].limit == pytest.approx(0.64)


def test_the_same_records_give_the_same_findings_whenever_one_looks() -> None:
    values = [0.9, 0.9, 0.9, 0.1, 0.9, 0.9, 0.9, 0.9]
    seen = [finding.step for step in range(8) for finding in check(HIGH, values, step=step) if finding.step == step]
    assert seen == at(check(HIGH, values)) == [2, 6]


def test_the_defaults_only_warn_and_every_gate_has_a_remedy() -> None:
    rules = HealthConfig().rules()
    assert {rule.action for rule in rules} == {"warn"}
    assert tuple(dict.fromkeys(rule.gate for rule in rules)) == GATES == tuple(REMEDIES)
    assert len({rule.metric for rule in rules}) == len(rules)


def test_a_rule_carries_what_its_section_says() -> None:
    changes = {gate: {"action": "stop", "patience": 7, "limit": 1.0} for gate in GATES} | {
        "grad_norm": {"action": "pause", "limit": 3.0, "window": 9}
    }
    rules = {rule.metric: rule for rule in HealthConfig.model_validate(changes).rules()}
    assert rules["update/entropy"] == Rule("entropy", "update/entropy", "below", "stop", 1.0, 7)
    assert rules["update/grad_norm"] == Rule("grad_norm", "update/grad_norm", "times_median", "pause", 3.0, 2, 9)
    assert (rules["update/mismatch_k3"].limit, rules["sync/mean_abs_logprob_diff"].limit) == (1.0, 0.1)


@pytest.mark.parametrize("gate", GATES)
def test_a_remedy_names_settings_that_exist(gate: str) -> None:
    named = [name for name in re.findall(r"`([^`]+)`", REMEDIES[gate]) if name != "seconds/"]
    assert named and [name for name in named if name not in FIELDS] == []


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"entropy": {"action": "panic"}}, "entropy.action"),
        ({"truncated_share": {"limit": 1.5}}, "truncated_share.limit"),
        ({"grad_norm": {"window": 1}}, "grad_norm.window"),
        ({"reward_drop": {"patience": 0}}, "reward_drop.patience"),
        ({"rollback_lr_factor": 0}, "rollback_lr_factor"),
        ({"mismatch_kl": {"limt": 1}}, "mismatch_kl.limt"),
    ],
)
def test_a_wrong_gate_is_refused_by_its_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        HealthConfig.model_validate(changes)
    assert [".".join(map(str, error["loc"])) for error in refused.value.errors()] == [field]


def test_the_exceptions_say_what_was_seen_what_to_try_and_who_decided() -> None:
    (found,) = check(LOW, [1.0, 0.05, 0.04])
    stop, back = HealthStop(found, "decided by a person"), RollBack(found)
    assert str(stop) == (
        "health gate entropy stopped the run (decided by a person): `update/entropy` lay below 0.1 at 2 steps, 1 to 2; "
        f"the last was 0.04. {REMEDIES['entropy']}"
    )
    assert str(back).startswith("health gate entropy rolls the run back to a state of at most 0 iterations: `update/")


def test_the_page_shows_the_newest_first_and_counts_the_old_ones() -> None:
    found = check(replace(HIGH, patience=1), [0.9, 0.1] * 3 + [0.9])
    page = findings_page(found, max_findings=2)
    headings = re.findall(r"^### .*$", page, flags=re.MULTILINE)
    assert headings == ["### `truncated_share` at step 6 (still so)", "### `truncated_share` at step 4 (over since)"]
    assert page.endswith("Older findings: 2.\n") and REMEDIES["truncated_share"] in page
    assert "Older" not in findings_page(found)


def test_what_was_told_is_remembered_by_metric_and_step_and_survives_a_replay(tmp_path: Path) -> None:
    path = tmp_path / "health.jsonl"
    (high,), (low,) = check(HIGH, [0.9] * 5), check(LOW, [0.01, 0.01, 0.01])
    assert not is_told(path, high)
    tell(path, 4, [high])
    tell(path, 4, [low])
    tell(path, 2, [])
    assert is_told(path, high) and is_told(path, low)
    assert not is_told(path, replace(high, step=9)) and not is_told(path, replace(high, metric="update/loss"))
    tell(path, 3, [replace(high, step=1)])  # a replay writes an earlier record; the later one stays
    assert is_told(path, high) and is_told(path, replace(high, step=1))


@pytest.mark.parametrize("action", ["stop", "rollback"])
def test_a_gate_that_stops_or_rolls_back_is_never_done_with(tmp_path: Path, action: Any) -> None:
    (high,) = check(replace(HIGH, action=action), [0.9] * 3)
    tell(tmp_path / "health.jsonl", 2, [high])
    assert not is_told(tmp_path / "health.jsonl", high)


def calls_to_judge(num_steps: int) -> int:
    """Function calls that all gates make for a healthy run of `num_steps`, a multiple of twelve."""
    history = run_of({key: values * (num_steps // 12) for key, values in HEALTHY.items()})
    assert len(history) == num_steps
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        found = findings(HealthConfig().rules(), history, [], step=num_steps - 1)
    finally:
        sys.setprofile(before)
    assert found == []
    return calls


def test_twice_the_steps_take_twice_the_work() -> None:
    assert calls_to_judge(2400) == pytest.approx(2 * calls_to_judge(1200), rel=0.1)
