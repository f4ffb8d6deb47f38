"""README and docs/ hold: links lead somewhere, what is named exists, and what is shown runs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.steps import load_deployment
from drgrpo.config.overrides import load_config
from drgrpo.config.paths import FIELDS, SECTIONS
from drgrpo.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text()

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def text_of(page: Path) -> str:
    """The page without comments: a screenshot to come stands in one."""
    return re.sub(r"<!--.*?-->", "", page.read_text(), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The fragments that a Markdown renderer gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_relative_links_lead_to_a_file_and_a_heading(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", text_of(page))
    broken = []
    for path, _, fragment in (link.partition("#") for link in links if not link.startswith(("http://", "https://"))):
        target = (page.parent / path) if path else page
        if not target.exists() or (fragment and fragment not in anchors(target)):
            broken.append(f"{path}#{fragment}")
    assert broken == []


def layout() -> set[str]:
    """Paths that the layout names: its lines nest by two spaces, and a folder ends in a slash."""
    match = re.search(r"<!-- layout -->\n```text\n(.*?)```", README, flags=re.DOTALL)
    assert match
    folders: list[str] = []
    named = set()
    for line in match[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name, clause = line.split(maxsplit=1)
        assert clause
        folders = [*folders[:depth], name]
        named.add("".join(folders))
    return named


def test_the_layout_names_every_module_and_nothing_that_does_not_exist() -> None:
    modules = {
        str(path.relative_to(ROOT))
        for folder in ("drgrpo", "flows", "tasks")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py"
    }
    named = layout()
    assert sorted(modules - named) == []
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def test_the_readmes_example_prints_what_it_says() -> None:
    (shown,) = re.findall(r"```python\n(.*?)```\n\nprints\n\n```text\n(.*?)```", README, flags=re.DOTALL)
    code, printed = shown
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == printed


@each_page
def test_overrides_that_a_page_shows_load(page: Path) -> None:
    for shown in re.findall(r"overrides='(\{.*?\})'", text_of(page), flags=re.DOTALL):
        if "..." not in shown:
            load_config(load_deployment("gsm8k"), json.loads(shown))


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "from-areal.md"], ids=lambda page: page.name)
def test_settings_that_a_page_names_exist(page: Path) -> None:
    """The page on AReaL names AReaL's keys too, and has a test of its own."""
    sections = "|".join(section for section in SECTIONS if "." not in section)
    named = set(re.findall(rf"[`\"]((?:{sections})\.[a-z_]+(?:\.[a-z_]+)?)[`\" ]", text_of(page)))
    assert sorted(n for n in named - {*FIELDS, *SECTIONS} if not n.startswith("reward.functions.")) == []


@each_page
def test_variables_tests_and_make_targets_that_a_page_names_exist(page: Path) -> None:
    text = text_of(page)
    variables = set(re.findall(rf"\b{PREFIX}[A-Z_]+", text)) - {PREFIX}
    assert variables <= {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    written = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    tests = {name for name in re.findall(r"`(test_\w+)`", text) if name not in ("test_trap_01", "test_trap_17")}
    assert sorted(name for name in tests if f"def {name}(" not in written) == []
    targets = set(re.findall(r"(?:`|    )make ([a-z-]+)", text))
    assert sorted(name for name in targets if f"\n{name}:" not in (ROOT / "Makefile").read_text()) == []


@each_page
def test_a_page_holds_no_path_of_a_machine_and_no_number_of_an_issue(page: Path) -> None:
    assert re.findall(r"(?<![\w.])/(?:work|root|home|tmp|usr|opt|mnt)/\S*|(?<![\w&/(])#\d+", text_of(page)) == []
