"""Bands over seeds, paired differences, and the report, against numbers by hand; names are hostile here."""

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from drgrpo.comparison.cells import run_rows, score_rows
from drgrpo.comparison.curves import band, smoothed, smoothing_width
from drgrpo.comparison.outcome import _headline
from drgrpo.comparison.panels import _limits
from drgrpo.comparison.processes import last_words
from drgrpo.comparison.report import write_report
from drgrpo.comparison.results import read_results, write_result
from drgrpo.comparison.student import t_interval, t_quantile
from drgrpo.comparison.table import comparison_table, difference, estimate
from drgrpo.metrics import EvaluationSummary
from drgrpo.statistics import bootstrap_interval
from tests.unit.comparison_result import HOSTILE, result

ROOT = Path(__file__).parents[2]


def test_quantiles_of_student_are_those_of_the_printed_tables() -> None:
    printed = {1: 12.706, 2: 4.303, 5: 2.571, 10: 2.228, 11: 2.201, 15: 2.131, 30: 2.042, 120: 1.980}
    assert {degrees: round(t_quantile(degrees), 3) for degrees in printed} == printed


def test_the_interval_of_three_seeds_is_mean_and_4_303_standard_errors() -> None:
    low, high = t_interval([1.0, 2.0, 6.0]) or (0.0, 0.0)
    half = 4.30265 * math.sqrt(7.0) / math.sqrt(3)  # squares of -2, -1, 3: 14, over n - 1 = 2
    assert (low, high) == pytest.approx((3 - half, 3 + half))
    assert t_interval([1.0]) is None and t_interval([2.0, 2.0]) == (2.0, 2.0)


def test_a_band_is_mean_and_t_interval_at_each_step_over_the_seeds_that_have_a_value() -> None:
    seeds: list[dict[str, list[float | None]]] = [
        {"step": [0, 1, 2], "x": [1.0, 4.0, 5.0]},
        {"step": [0, 1, 2], "x": [3.0, 8.0, None]},
        {"step": [0, 1], "x": [5.0, None]},
    ]
    found = band(seeds, "x")
    assert found.steps.tolist() == [0, 1, 2] and found.mean.tolist() == [3.0, 6.0, 5.0]
    three, two = 4.30265 * 2 / math.sqrt(3), 12.7062 * math.sqrt(8) / math.sqrt(2)
    assert found.low[:2] == pytest.approx([3 - three, 6 - two]) and found.high[:2] == pytest.approx(
        [3 + three, 6 + two]
    )
    assert math.isnan(found.low[2]) and math.isnan(found.high[2])
    assert band(seeds, "y").steps.size == 0 and band([], "x").steps.size == 0


def test_each_seed_is_smoothed_by_itself_and_a_step_without_a_value_has_no_part_in_it() -> None:
    assert smoothed({0: 1.0, 1: 3.0, 3: 8.0, 4: 0.0}, 2) == {0: 1.0, 1: 2.0, 3: 8.0, 4: 4.0}
    assert smoothed({0: 1.0, 1: 3.0, 3: 8.0}, 1) == {0: 1.0, 1: 3.0, 3: 8.0}
    found = band([{"step": [0, 1], "x": [0.0, 4.0]}, {"step": [0, 1], "x": [2.0, 2.0]}], "x", width=2)
    # The means of two steps are 2 and 2: after smoothing the seeds agree, and the band has no height.
    assert found.mean.tolist() == [1.0, 2.0] and (found.low[1], found.high[1]) == (2.0, 2.0)
    assert [smoothing_width([{"step": list(range(n))}]) for n in (5, 39, 40, 100)] == [1, 1, 2, 5]


def test_a_score_has_a_bootstrap_over_problems_and_a_t_interval_over_seeds() -> None:
    found = estimate({1: {"p": 1.0, "q": 0.0, "r": 0.5}, 2: {"p": 0.0, "q": 0.0, "r": 1.0, "only here": 1.0}})
    assert (found.mean, found.num_seeds, found.num_problems) == (pytest.approx(1.25 / 3), 2, 3)
    _, low, high = bootstrap_interval([0.5, 0.0, 0.75])
    assert found.over_problems == (low, high)
    half = 12.7062 * (abs(0.5 - 1 / 3) / math.sqrt(2)) / math.sqrt(2)
    assert found.over_seeds == pytest.approx((1.25 / 3 - half, 1.25 / 3 + half))
    assert estimate({1: {"p": 1.0}}).over_seeds is None
    with pytest.raises(ValueError, match="share no problem"):
        estimate({1: {"p": 1.0}, 2: {"q": 1.0}})


def test_a_difference_is_paired_by_seed_and_problem() -> None:
    first = {1: {"p": 0.0, "q": 1.0}, 2: {"p": 0.5, "q": 0.5}, 3: {"p": 1.0, "q": 1.0}}
    other = {1: {"q": 0.5, "p": 0.5}, 2: {"p": 1.0, "q": 0.0}}
    found = difference(first, other)
    assert found is not None
    # p: +0.5 with both seeds, q: -0.5 with both; each seed's mean is 0, so other seeds would say the same.
    assert (found.mean, found.over_problems, found.over_seeds) == (0.0, (-0.5, 0.5), (0.0, 0.0))
    assert found.num_seeds == 2 and difference(first, {9: {"p": 1.0}}) is None


def test_the_table_has_each_score_of_each_arm_and_differences_to_the_first() -> None:
    rows = comparison_table([result(arm, seed, shift) for arm, shift in (("a", 0.0), ("b", 0.125)) for seed in (1, 2)])
    assert [(row.arm, row.score, row.difference is None) for row in rows] == [
        ("a", "greedy pass@1", True), ("b", "greedy pass@1", False), ("a", "avg@8", True), ("b", "avg@8", False),
    ]  # fmt: skip
    cells = score_rows(rows)[3]
    assert cells == {
        "score": "avg@8", "arm": "b", "mean": "50.0 %", "over problems": "[37.5, 62.5]", "over seeds": "[50.0, 50.0]",
        "difference to a": "+12.5", "its interval over problems": "[+12.5, +12.5]",
        "its interval over seeds": "[+12.5, +12.5]", "seeds": "2", "problems": "2",
    }  # fmt: skip
    assert run_rows([result("b", 7, 0.125)])[0]["tokens sampled"] == "1,200"
    assert comparison_table([]) == [] and score_rows([]) == []


def test_results_are_read_in_the_order_of_arms_and_seeds(tmp_path: Path) -> None:
    for arm, seed in (("b", 2), ("a", 10), ("a", 2), ("c", 1)):
        write_result(tmp_path / f"{arm}-{seed}.json", result(arm, seed, 0.0))
    assert [(r["arm"], r["seed"]) for r in read_results(tmp_path, ["b"])] == [("b", 2), ("a", 2), ("a", 10), ("c", 1)]
    assert len((tmp_path / "a-2.json").read_text().splitlines()) == len(result("a", 2, 0.0)) + 2
    (tmp_path / "d.json").write_text("{}")
    with pytest.raises(ValueError, match=r"d\.json: not the result of an arm"):
        read_results(tmp_path)


def test_avg_at_8_has_its_own_name_and_a_score_that_was_not_measured_is_null() -> None:
    scores = {"avg_at_k": {"p": 0.5, "q": 0.25}}
    found = _headline(EvaluationSummary(8, scores, {}))
    assert (found["avg_at_8"], found["avg_at_k"], found["greedy_pass1"], found["num_problems"]) == (
        0.375,
        0.375,
        None,
        2,
    )
    assert found["intervals"] == {"avg_at_k": [0.25, 0.5]}
    assert "avg_at_8" not in _headline(EvaluationSummary(4, scores, {}))


class Tags(HTMLParser):
    """Names of all elements, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_needs_no_network_and_no_script_and_hostile_names_stay_text(tmp_path: Path) -> None:
    results = [result(arm, seed, shift) for arm, shift in (("plain", 0.0), (HOSTILE, 0.125)) for seed in (1, 2)]
    results[-1]["overrides"] = {HOSTILE: "</td><img src=x onerror=alert(1)>"}
    summary = write_report(tmp_path, results, title=HOSTILE, about={"missing": [HOSTILE]})
    page = Path(summary["report"]).read_text()
    tags = Tags(page)
    assert HOSTILE in tags.text and "onerror=alert(1)" in tags.text
    assert not {"script", "link", "a", "iframe", "object"} & tags.names
    assert tags.attributes <= {"alt", "charset", "class", "content", "http-equiv", "lang", "src"}
    assert page.count("src=") - page.count("&lt;img src=") == 3
    assert set(re.findall(r'src="([^"]{0,22})', page)) == {"data:image/png;base64,"}
    assert re.findall(r"url\(|@import", page) == []
    picture = matplotlib.image.imread(tmp_path / "report.png")
    assert picture.shape[1] == 1870
    assert json.loads((tmp_path / "summary.json").read_text())["table"][3]["difference"]["mean"] == 0.125
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.png", "summary.json"]


def test_a_report_of_nothing_says_so(tmp_path: Path) -> None:
    summary = write_report(tmp_path, [], title="t", about={"missing": ["a-1 (0 of 2 steps)"]})
    page = (tmp_path / "report.html").read_text()
    assert summary["table"] == [] and "Nothing is finished." in page and "a-1 (0 of 2 steps)" in page


def test_a_wide_band_is_cut_where_it_would_flatten_the_curves() -> None:
    two = band([{"step": [0], "x": [10.0]}, {"step": [0], "x": [12.0]}], "x")
    assert two.high[0] == pytest.approx(11 + 12.7062)
    assert _limits([two]) == pytest.approx((8 - 0.24, 14 + 0.24))
    near_zero = band([{"step": [0], "x": [0.0]}, {"step": [0], "x": [2.0]}], "x")
    assert _limits([near_zero])[0] == pytest.approx(-0.04 * 4)
    assert np.diff(_limits([band([{"step": [0], "x": [5.0]}], "x")]))[0] > 0


def test_results_of_several_comparisons_make_one_report_by_a_command(tmp_path: Path) -> None:
    for arm in ("b", "a"):
        machine = {"processor": "x", "gpus": ["NVIDIA H100"]}
        write_result(tmp_path / "results" / f"{arm}-1.json", result(arm, 1, 0.0, hardware=machine))
    command = [sys.executable, "-m", "drgrpo.comparison", str(tmp_path / "results"), str(tmp_path / "out"), "b"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "out" / "report.html")
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["arms"] == ["b", "a"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert re.findall(r"https?:", page) == [] and "One seed each" in page and "Not finished" not in page
    assert "NVIDIA H100" in page
    empty = subprocess.run([*command[:3], str(tmp_path), str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert empty.returncode == 1 and "no results" in empty.stderr


def test_the_last_words_of_a_process_are_its_last_line_without_secrets_and_escapes(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    assert last_words(log) == ""
    log.write_text("before\n\x1b[31mValueError: http://me:secret@host/\x1b[0m\n\n")
    assert last_words(log) == "ValueError: http://***@host/"
