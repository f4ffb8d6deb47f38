"""The table of every setting for docs/configuration.md, from the fields themselves.

python -m drgrpo.config.reference docs/configuration.md      # rewrites the part between the markers
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from drgrpo.config.paths import expected, is_section, walk
from drgrpo.config.train import TrainConfig
from drgrpo.settings import PREFIX, Settings

BEGIN, END = "<!-- settings: generated -->", "<!-- /settings -->"


def markdown() -> str:
    """All sections of the configuration, then the settings of the machine, as Markdown tables."""
    own = [(path, info) for path, info in walk(TrainConfig) if "." not in path]
    parts = ["### The run", "", *table(own)]
    for name, info in TrainConfig.model_fields.items():
        if is_section(info):
            parts += ["", f"### `{name}`", "", section_summary(info), "", *table(walk(section(info), f"{name}."))]
    machine = [(f"{PREFIX}{name.upper()}", info) for name, info in Settings.model_fields.items()]
    parts += ["", "### The machine (environment)", "", *table(machine)]
    return "\n".join(parts)


def section(info: FieldInfo) -> type[BaseModel]:
    """The model of a field that holds further fields."""
    assert isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
    return info.annotation


def section_summary(info: FieldInfo) -> str:
    """First paragraph of a section's docstring."""
    return (section(info).__doc__ or "").strip().split("\n\n")[0]


def table(fields: Iterable[tuple[str, FieldInfo]]) -> list[str]:
    """Rows of setting, accepted values, default, meaning."""
    rows = ["| Setting | Values | Default | Meaning |", "|---|---|---|---|"]
    for path, info in fields:
        cells = (f"`{path}`", expected(info), f"`{default(info)}`", info.description or "")
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return rows


def default(info: FieldInfo) -> str:
    """A default as it is written in JSON."""
    value = info.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, Path | SecretStr):
        value = "" if isinstance(value, SecretStr) or value == Path() else str(value)
    return json.dumps(value)


def rewritten(document: str) -> str:
    """A document with the part between the markers replaced by the tables."""
    before, rest = document.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    return f"{before}{BEGIN}\n\n{markdown()}\n\n{END}{after}"


if __name__ == "__main__":
    document = Path(sys.argv[1])
    document.write_text(rewritten(document.read_text()))
