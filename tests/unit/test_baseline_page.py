"""The page of the baselines has the tables of the results that it names, and nothing else of it changes."""

from pathlib import Path

from benchmarks.baseline_page import plot, rewritten
from drgrpo.comparison.results import write_result
from tests.unit.comparison_result import result

PAGE = """# Baseline
<!-- baseline: gsm8k -->
old
<!-- /baseline -->
Between.
<!-- baseline: sums -->
<!-- /baseline -->
"""


def test_each_part_between_markers_becomes_the_tables_of_its_task(tmp_path: Path) -> None:
    for arm, shift in (("dr-grpo", 0.0), ("grpo", 0.125)):
        write_result(tmp_path / "gsm8k" / f"{arm}-1.json", result(arm, 1, shift))
    write_result(tmp_path / "sums" / "dr-grpo-1.json", result("dr-grpo", 1, 0.0))
    page = rewritten(PAGE, tmp_path)
    first, _, second = page.partition("Between.\n")
    assert first.startswith("# Baseline\n<!-- baseline: gsm8k -->\n\n| score ") and "old" not in page
    assert "| avg@8 | grpo | 50.0 % |" in first and "| +12.5 |" in first
    assert "| grpo | adv_norm.std_level = group |" in first and "| 1,200 |" in first
    assert "| avg@8 | dr-grpo | 37.5 % |" in second and "| grpo |" not in second
    assert rewritten(page, tmp_path) == page


def test_tasks_named_together_are_compared_with_the_seeds_that_all_arms_have(tmp_path: Path) -> None:
    for arm, seed, task in (("dr-grpo", 1, "sums"), ("dr-grpo", 2, "sums"), ("grpo", 1, "sums"), ("rloo", 1, "more")):
        write_result(tmp_path / task / f"{arm}-{seed}.json", result(arm, seed, 0.25 if arm == "rloo" else 0.0))
    page = rewritten("<!-- baseline: sums more -->\n<!-- /baseline -->\n", tmp_path)
    scores = [line.split(" | ")[1:3] for line in page.splitlines() if line.startswith("| avg@8")]
    assert scores == [["dr-grpo", "37.5 %"], ["grpo", "37.5 %"], ["rloo", "62.5 %"]]
    assert page.count("| dr-grpo | 1 |") == 1 and "| dr-grpo | 2 |" not in page and "| +25.0 |" in page


def test_the_pictures_are_named_after_the_last_task_of_their_marker(tmp_path: Path) -> None:
    write_result(tmp_path / "sums" / "dr-grpo-1.json", result("dr-grpo", 1, 0.0))
    write_result(tmp_path / "more" / "rloo-1.json", result("rloo", 1, 0.25))
    plot(
        "<!-- baseline: sums -->\n<!-- /baseline -->\n<!-- baseline: sums more -->\n<!-- /baseline -->\n",
        tmp_path,
        tmp_path,
    )
    pictures = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert pictures.keys() == {"baseline-sums.png", "baseline-more.png"} and len(set(pictures.values())) == 2
    assert all(content.startswith(b"\x89PNG") for content in pictures.values())
