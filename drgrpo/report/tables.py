"""Short tables of a run: its steps, and some of its samples."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from drgrpo.report.untrusted import clean, code_span

STAGES = ("rollout", "reward", "advantage", "update", "sync", "evaluate", "checkpoint")
"""Order of the stages; their metrics are `seconds/<stage>`, that of the whole step is `seconds/step`."""

_COLUMNS = {
    "reward": ("reward/mean", "{:.3f}"),
    "accuracy": ("rollout/accuracy", "{:.1%}"),
    "tokens": ("completion_length/mean", "{:.0f}"),
}


def summary_table(history: Sequence[Mapping[str, float]], *, max_rows: int = 20) -> list[dict[str, str]]:
    """Rows of step, reward, accuracy, mean completion length (tokens) and seconds of each stage that ever takes 0.05.

    Of a longer history `max_rows` evenly spaced steps are shown, the first and the last among them.
    """
    stages = [s for s in stage_names(history) if any(r.get(f"seconds/{s}", 0) >= 0.05 for r in history)]
    return [_summary_row(record, stages) for record in _evenly(history, max_rows)]


def stage_names(history: Sequence[Mapping[str, float]]) -> list[str]:
    """Stages that have a `seconds/` metric, in their order; ones unknown here come last."""
    found = {key.removeprefix("seconds/") for record in history for key in record if key.startswith("seconds/")}
    return [s for s in STAGES if s in found] + sorted(found.difference(STAGES, {"step"}))


def samples_table(table: pa.Table, n: int, *, markdown: bool = True) -> list[dict[str, str]]:
    """`n` samples of a sample or evaluation table, right, wrong and truncated ones in turn, as rows of text.

    Prompt and completion are untrusted: they come cleaned and shortened, and as Markdown code spans for a viewer that
    renders `markdown`.
    """
    rows = table.select([name for name in _SAMPLE_CELLS if name in table.column_names]).to_pylist()
    return [{_SAMPLE_CELLS[name]: _cell(value, markdown) for name, value in row.items()} for row in _in_turn(rows, n)]


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows as a Markdown table. A pipe in a cell is shown as ∣, because no escape of it is safe in every renderer."""
    if not rows:
        return ""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([row.get(key, "") for key in rows[0]] for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '∣') for cell in line)} |" for line in lines) + "\n"


def rich_table(rows: Sequence[Mapping[str, str]], title: str = "") -> Table:
    """Rows for the terminal; no cell is read as markup."""
    table = Table(title=Text(title) if title else None, title_justify="left", box=SIMPLE_HEAD, padding=0)
    for column in rows[0] if rows else ():
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(Text(row.get(column, "")) for column in rows[0]))
    return table


def _summary_row(record: Mapping[str, float], stages: Sequence[str]) -> dict[str, str]:
    numbers = {name: _number(record.get(key), form) for name, (key, form) in _COLUMNS.items()}
    seconds = {f"{stage} s": _number(record.get(f"seconds/{stage}"), "{:.1f}") for stage in stages}
    return {"step": f"{record['step']:.0f}", **numbers, **seconds}


def _number(value: float | None, form: str) -> str:
    return "" if value is None or math.isnan(value) else form.format(value)


def _evenly(history: Sequence[Mapping[str, float]], n: int) -> list[Mapping[str, float]]:
    if len(history) <= n:
        return list(history)
    return [history[round(i * (len(history) - 1) / (n - 1))] for i in range(n)]


def _in_turn(rows: list[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    kinds: dict[object, list[dict[str, Any]]] = {}
    for row in rows:
        kinds.setdefault("length" if row["finish_reason"] == "length" else bool(row["correct"]), []).append(row)
    turns = (kinds[kind][turn : turn + 1] for turn in range(n) for kind in (True, False, "length") if kind in kinds)
    return [row for rows_of_turn in turns for row in rows_of_turn][:n]


def _cell(value: Any, markdown: bool) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case int():
            return str(value)
        case float():
            return f"{value:.3f}"
        case list():
            return str(len(value))
        case _:
            text = clean(str(value))
            return code_span(text) if markdown else text


_SAMPLE_CELLS = {
    "mode": "mode",
    "correct": "correct",
    "reward": "reward",
    "completion": "completion",
    "answer": "answer",
    "completion_ids": "tokens",
    "finish_reason": "finish",
    "grader_status": "grader",
    "advantage": "advantage",
    "step": "step",
    "problem_id": "problem",
    "prompt": "prompt",
}
