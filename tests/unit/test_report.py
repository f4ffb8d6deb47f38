"""History, tables and plot of a run; completions are hostile here."""

import json
import math
import os
from pathlib import Path

import matplotlib.image
import numpy as np
import pyarrow as pa
import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from drgrpo.report import (
    clean,
    code_span,
    markdown_table,
    plot_run,
    read_history,
    rich_table,
    samples_table,
    summary_table,
    write_history,
)
from drgrpo.report.axes import running_mean, series, spread

HOSTILE = [
    "<script>alert(1)</script>",
    "</code></td></table><img src=x onerror=alert(1)>",
    "`<b>`` <i>``` |<u>|\\|<s>| \\",
    "[click](javascript:alert(1)) ![x](http://evil/x.png)",
    "| a | b |\n| --- | --- |\n<iframe>",
    "```html\n<b>bold</b>\n```",
    "\n\n# Title\n\n* item\n<!-- comment -->",
    "$$\\sum$$ &lt;b&gt; [bold red]x[/bold red]",
    "` `` ``` ```` end`",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_completion_stays_text_in_markdown_and_in_a_markdown_table(text: str) -> None:
    rendered = MarkdownIt("commonmark").render(code_span(clean(text)))
    row = {"step": "1", "completion": code_span(clean(text)), "reward": "0.5"}
    table = MarkdownIt("commonmark").enable("table").render(markdown_table([row]))
    assert rendered.startswith("<p><code>") and rendered.count("<") == 4
    assert table.count("<td>") == 3 and "<td>0.5</td>" in table
    body = table[table.index("<tbody>") :]
    assert body.count("<") == sum(map(body.count, ("<tbody>", "</tbody>", "<tr>", "</tr>", "<td>", "</td>"))) + len(
        ["<code>", "</code>", "</table>"]
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\x1b[31mred\x1b[0m\x1b]0;title\x07b", "aredb"),
        ("a\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "alink"),
        ("a\x9b2Jb\x00\x08\x7fc", "abc"),
        ("left\u202eright\u200b\ufeff", "leftright"),
        ("one\r\ntwo\tthree\u2028four", "one ⏎ two three ⏎ four"),
        ("\x1b\x1b[31m[32mx", "[32mx"),
        ("4 × 5 = 20 “ok” 数 🙂", "4 × 5 = 20 “ok” 数 🙂"),
    ],
)
def test_escape_sequences_and_invisible_characters_are_removed(text: str, expected: str) -> None:
    assert clean(text) == expected
    assert clean(clean(text)) == clean(text)


def test_a_long_completion_keeps_its_beginning_and_its_end() -> None:
    shown = clean("start" + "x" * 100_000 + "end", limit=100)
    assert shown.startswith("startxx") and shown.endswith("xxend") and len(shown) == 103
    assert len(clean("\x1b]" * 100_000, limit=100)) <= 103


def sample_table() -> pa.Table:
    return pa.table(
        {
            "step": [3, 3, 3, 3],
            "prompt": ["2+2?"] * 4,
            "completion": ["4", "<b>5</b>", "[red]6", "4"],
            "completion_ids": [[1], [1, 2], [1, 2, 3], [1]],
            "finish_reason": ["stop", "stop", "length", "stop"],
            "reward": [1.0, 0.0, 0.0, 1.0],
            "correct": [True, False, None, True],
            "run_id": ["r"] * 4,
        }
    )


def test_samples_are_right_wrong_and_truncated_ones_in_turn() -> None:
    rows = samples_table(sample_table(), 3)
    assert rows[0] == {
        "step": "3", "prompt": "`2+2?`", "completion": "`4`", "tokens": "1", "finish": "`stop`", "reward": "1.000",
        "correct": "yes",
    }  # fmt: skip
    assert [row["completion"] for row in rows] == ["`4`", "`<b>5</b>`", "`[red]6`"]
    plain = samples_table(sample_table(), 3, markdown=False)
    assert [row["completion"] for row in plain] == ["4", "<b>5</b>", "[red]6"]
    assert rows[2]["correct"] == ""
    assert [row["completion"] for row in samples_table(sample_table(), 9)][-1] == "`4`"
    assert samples_table(sample_table().slice(0, 0), 3) == [] and samples_table(sample_table(), 0) == []


def test_the_terminal_table_reads_no_markup_and_shows_every_cell() -> None:
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(rich_table(samples_table(sample_table(), 4), "[red]title"))
    text = console.export_text()
    assert "`[red]6`" in text and "[red]title" in text


HISTORY = [
    {"step": s, "reward/mean": s / 10, "rollout/accuracy": 0.25, "seconds/update": 2.0, "seconds/rollout": 1.04,
     "seconds/advantage": 0.001, "seconds/step": 3.1, "seconds/custom": 1.0}
    for s in range(50)
]  # fmt: skip


def test_the_summary_shows_stages_in_order_and_few_rows_of_a_long_run() -> None:
    rows = summary_table(HISTORY, max_rows=8)
    assert rows[0] == {
        "step": "0", "reward": "0.000", "accuracy": "25.0%", "tokens": "", "rollout s": "1.0", "update s": "2.0",
        "custom s": "1.0",
    }  # fmt: skip
    assert [row["step"] for row in rows] == ["0", "7", "14", "21", "28", "35", "42", "49"]
    assert markdown_table(summary_table(HISTORY[:1])).splitlines()[2] == "| 0 | 0.000 | 25.0% |  | 1.0 | 2.0 | 1.0 |"
    assert summary_table([]) == [] and markdown_table([]) == ""


def test_a_replayed_step_replaces_its_record_and_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    for step in (0, 1, 2):
        write_history(path, {"step": step, "a": step})
    write_history(path, {"step": 1, "a": 10.5, "b": math.nan})
    write_history(path, {"step": 2, "a": 20})
    write_history(path, {"step": 3, "a": 30})
    records = read_history(path)
    assert [(record["step"], record["a"]) for record in records] == [(0, 0), (1, 10.5), (2, 20), (3, 30)]
    assert math.isnan(records[1]["b"])
    assert len(path.read_text().splitlines()) == 4 and "NaN" not in path.read_text()


def test_a_line_torn_by_a_crash_is_left_out_and_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    assert read_history(path) == []
    write_history(path, {"step": 0, "a": 1.0})
    with path.open("a") as file:
        file.write('{"step": 1, "a": 12345678901234567890, "b"')
    assert read_history(path) == [{"step": 0, "a": 1.0}]
    write_history(path, {"step": 1, "a": 2.0})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 0, "a": 1.0},
        {"step": 1, "a": 2.0},
    ]


def evaluation(step: int, value: float) -> dict[str, float]:
    names = {"evaluation/greedy": value, "evaluation/avg_at_k": value - 0.1, "evaluation/pass_at_k": value + 0.1}
    bars = {f"{name}{side}": v + d for name, v in names.items() for side, d in (("_low", -0.05), ("_high", 0.05))}
    return {"step": step, "evaluation/k": 4, **names, **bars}


@pytest.mark.parametrize("num_steps", [0, 1, 8, 300])
def test_the_plot_is_a_whole_picture_for_any_length_of_run(tmp_path: Path, num_steps: int) -> None:
    history = [
        {
            "step": step,
            "reward/mean": step / 300,
            "completion_length/mean": 100.0,
            "seconds/rollout": 5.0,
            "seconds/update": 4.0,
            "update/entropy": math.nan if step == 3 else 0.5,
            "sync/mean_abs_logprob_diff": 0.0,
        }
        for step in range(num_steps)
    ]
    evaluations = [evaluation(step, 0.5) for step in (0, num_steps)] if num_steps else []
    plot_run(history, evaluations, tmp_path / "run.png", title="a $run_ with <odd> name$ ^")
    image = matplotlib.image.imread(tmp_path / "run.png")
    blank = tmp_path / "blank.png"
    plot_run([], [], blank, title="a $run_ with <odd> name$ ^")
    ink, blank_ink = (
        (picture[..., :3].min(axis=-1) < 0.8).sum() for picture in (image, matplotlib.image.imread(blank))
    )
    assert ink > blank_ink + 500 if num_steps else ink == blank_ink
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blank.png", "run.png"]


def test_labels_are_moved_apart_in_their_order_and_stay_inside() -> None:
    assert spread([0.5, 0.1], 0.1) == [0.5, 0.1]
    assert spread([0.5, 0.52, 0.5], 0.1) == pytest.approx([0.5, 0.7, 0.6])
    assert spread([1.0, 0.99], 0.2) == pytest.approx([1.0, 0.8])


def test_the_smoothed_line_is_the_mean_of_the_last_values() -> None:
    assert running_mean(np.array([1.0, 3.0, 5.0, 9.0]), 2).tolist() == [1.0, 2.0, 4.0, 7.0]


def test_a_metric_is_found_under_any_namespace_and_without_its_values_that_are_not_finite() -> None:
    records = [
        {"step": 0, "update/entropy": 1.0},
        {"step": 1, "update/entropy": math.inf},
        {"step": 2, "x_entropy": 3.0},
    ]
    steps, values = series(records, "entropy")
    assert (steps.tolist(), values.tolist()) == ([0.0], [1.0])
