"""The report as one HTML page that needs no network and no script: pictures are in it, every text is escaped."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from drgrpo.comparison.cells import arm_rows, run_rows, score_rows
from drgrpo.comparison.curves import smoothing_width
from drgrpo.comparison.results import Result
from drgrpo.comparison.table import Row
from drgrpo.report import clean

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1240px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; margin-bottom: 0; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93em; margin-bottom: 1em; }
th, td { padding: .35em .8em; text-align: right; border-bottom: 1px solid #e4e4e4; vertical-align: top; }
td { white-space: nowrap; } th:first-child, td:first-child, .words td, .words th { text-align: left; }
th { font-weight: 600; color: #666; } .scroll { overflow-x: auto; }
.words td { white-space: normal; overflow-wrap: anywhere; }
img { width: 100%; } p.note, figcaption { color: #555; font-size: .93em; max-width: 62em; } figure { margin: 1.5em 0; }
.missing { border-left: 4px solid #d55e00; padding: .4em 1em; background: #fdf3ec; }
"""
_CAPTIONS = {
    "outcome": "Held-out accuracy at each evaluation, training reward, and the reward that a mean length buys.",
    "length": "Length of completions. Correct and incorrect ones are those that ended by themselves; truncated ones "
    "stand apart, because a length that was cut says nothing about the policy.",
    "signal": "Entropy of the policy; groups whose rewards are all equal, which carry no gradient; completions cut at "
    "the limit; and the differences of the table (thick: over problems, thin: over seeds).",
}


def comparison_page(
    results: Sequence[Result],
    rows: Sequence[Row],
    pictures: Mapping[str, Path],
    *,
    title: str,
    about: Mapping[str, Any],
) -> str:
    """The page.

    Args:
        results: The JSON of each arm and seed.
        rows: `comparison_table` of them.
        pictures: PNG of each section of `drgrpo.comparison.plot.SECTIONS`.
        title: Untrusted, as all names are.
        about: `missing` lists what is not finished.
    """
    parts = [f"<h1>{_text(title)}</h1>", _introduction(results), _missing(about.get("missing", ()))]
    parts += ["<h2>At the last step</h2>", _table(score_rows(rows)), _note(_METHOD)]
    for name, path in pictures.items():
        image = base64.b64encode(path.read_bytes()).decode()
        parts.append(
            f'<figure><img alt="{_text(_CAPTIONS[name])}" src="data:image/png;base64,{image}">'
            f"<figcaption>{_text(_CAPTIONS[name])}</figcaption></figure>"
        )
    parts += [_note(_lines(results)), "<h2>Arms and runs</h2>", _table(arm_rows(results), kind="words")]
    parts += [_table(run_rows(results)), _machines(results)]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
    body = "\n".join(part for part in parts if part)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<title>{_text(title)}</title><style>{_STYLE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


_METHOD = (
    "Each score has two 95 % intervals. Over problems: a bootstrap over problems of the mean over seeds; it says what "
    "other problems would have given with these trained models. Over seeds: a t-interval over seeds of the mean over "
    "problems; it says what other seeds would have given. Differences are paired: the same problems, sample seeds and "
    "order of data on both sides. Take a difference for real only where both of its intervals leave out 0."
)


def _introduction(results: Sequence[Result]) -> str:
    arms = list(dict.fromkeys(result["arm"] for result in results))
    seeds = sorted({result["seed"] for result in results})
    text = f"{len(arms)} arms ({', '.join(map(str, arms))}), seeds {', '.join(map(str, seeds))}."
    single = len({(r["arm"], r["seed"]) for r in results}) == len(arms)
    if single and results:
        text += " One seed each: there are no bands and no intervals over seeds, so nothing here tells seeds apart."
    return _note(text)


def _lines(results: Sequence[Result]) -> str:
    width = smoothing_width([result["training"] for result in results])
    smooth = f" Training curves are running means over {width} steps." if width > 1 else ""
    return (
        "Lines are means over seeds, bands their 95 % t-intervals at each step, faint lines the seeds. A band that "
        f"leaves the panel is cut at its edge.{smooth}"
    )


def _missing(missing: Sequence[str]) -> str:
    return f'<p class="missing">Not finished, and so not in here: {_text(", ".join(missing))}.</p>' if missing else ""


def _machines(results: Sequence[Result]) -> str:
    """Versions and hardware, once each."""
    lines = dict.fromkeys(
        f"{', '.join(r['hardware']['gpus']) or r['hardware']['processor']}; "
        f"{', '.join(f'{name} {version}' for name, version in r['versions'].items())}; commit {r['git_commit'][:12]}"
        for r in results
    )
    return "".join(_note(line) for line in lines)


def _table(rows: Sequence[Mapping[str, str]], kind: str = "numbers") -> str:
    if not rows:
        return _note("Nothing is finished.")
    head = "".join(f"<th>{_text(name)}</th>" for name in rows[0])
    body = "\n".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row.values())}</tr>" for row in rows)
    table = f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"
    return f'<div class="scroll {kind}">{table}</div>'


def _note(text: str) -> str:
    return f'<p class="note">{_text(text)}</p>'


def _text(text: str) -> str:
    return escape(clean(str(text), 4000))
