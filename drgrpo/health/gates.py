"""The health gates: from a run's records to what is wrong with it. The same records give the same findings."""

from collections.abc import Sequence

from drgrpo.health.finding import Finding
from drgrpo.health.readings import Records, readings
from drgrpo.health.remedies import REMEDIES
from drgrpo.health.rule import Bar, Reading, Rule, bar_of, is_above, is_beyond, number


def findings(rules: Sequence[Rule], history: Records, evaluations: Records, *, step: int) -> list[Finding]:
    """Everything that the gates found up to the end of iteration `step`, oldest first.

    A gate gives one finding when it becomes true, and the next one only after it has been false; steps that did not
    measure its metric leave it as it is. `history` holds the metrics of each iteration under their names and its
    number under `step`; `evaluations` likewise, `step` being the number of iterations done.
    """
    found = [finding for rule in rules for finding in _findings_of(rule, history, evaluations, step)]
    return sorted(found, key=lambda finding: finding.step)


def _findings_of(rule: Rule, history: Records, evaluations: Records, step: int) -> list[Finding]:
    if rule.action == "off":
        return []
    read = readings(rule, history, evaluations, step=step)
    bars = [_bar_if_true(rule, read, end) for end in range(1, len(read) + 1)]
    starts = [index for index, bar in enumerate(bars) if bar and (index == 0 or bars[index - 1] is None)]
    return [
        _finding(rule, read[start + 1 - rule.patience : start + 1], bar, is_open=None not in bars[start:])
        for start in starts
        if (bar := bars[start])
    ]


def _bar_if_true(rule: Rule, read: Sequence[Reading], end: int) -> Bar | None:
    """The bar that the last `patience` of the first `end` readings all lie beyond; None when the gate is not true."""
    start = end - rule.patience
    if start < 0:
        return None
    bar = bar_of(rule, read, start)
    return bar if bar and all(is_beyond(rule, reading.value, bar) for reading in read[start:end]) else None


def _finding(rule: Rule, streak: Sequence[Reading], bar: Bar, *, is_open: bool) -> Finding:
    evaluated = rule.kind == "below_best"
    last = streak[-1]
    return Finding(
        gate=rule.gate,
        metric=rule.metric,
        action=rule.action,
        step=last.step - 1 if evaluated else last.step,
        seen=last.value,
        limit=bar.value,
        last_good=bar.best_step if evaluated else max(streak[0].step - 1, 0),
        is_open=is_open,
        message=_message(rule, streak, bar),
        remedy=REMEDIES[rule.gate],
    )


def _message(rule: Rule, streak: Sequence[Reading], bar: Bar) -> str:
    value, when = number(streak[-1].value), _when(rule, streak)
    side = "above" if is_above(rule) else "below"
    seen = f"it was {value}" if len(streak) == 1 else f"the last was {value}"
    return f"`{rule.metric}` lay {side} {bar.words} at {when}; {seen}."


def _when(rule: Rule, streak: Sequence[Reading]) -> str:
    first, last, count = streak[0].step, streak[-1].step, len(streak)
    if rule.kind == "below_best":
        one, many = f"the evaluation after {last}", f"{count} evaluations, after {first} to {last}"
        return f"{one if count == 1 else many} iterations"
    return f"step {last}" if count == 1 else f"{count} steps, {first} to {last}"
