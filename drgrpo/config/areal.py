"""Converts an AReaL YAML into a deployment of this project, and lists what it could not carry.

python -m drgrpo.config.areal gsm8k_drgrpo.yaml -o deployments/mine.yaml
"""

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from drgrpo.config.areal_derived import DERIVED, KNOWN_SIZES
from drgrpo.config.areal_keys import AREAL_KEYS
from drgrpo.config.areal_notes import Note, notes_of
from drgrpo.config.checks import check_config
from drgrpo.config.errors import ConfigError, Mistake
from drgrpo.config.overrides import load_config
from drgrpo.config.train import TrainConfig

INTERPOLATION = re.compile(r"\$\{([^${}]+)\}")
NORM_SECTIONS = ("actor.reward_norm.", "actor.adv_norm.")


def convert(areal: Mapping[str, Any], num_train_problems: int = 0) -> tuple[dict[str, Any], list[Note]]:
    """Our dotted overrides, and notes on what was not carried or has another meaning.

    A key that the file leaves out has AReaL's default, where it has a counterpart here. Epochs become steps by
    `num_train_problems` (known for GSM8K). Raises `ConfigError` for an interpolation that leads nowhere.
    """
    flat = interpolated(flattened(areal))
    overrides: dict[str, Any] = {}
    used: set[str] = set()
    for key, target in AREAL_KEYS.items():
        if key.startswith(NORM_SECTIONS):
            continue
        value = flat.get(key, target.default)
        if key in flat or target.default is not None:
            converted = target.convert(value)
            overrides |= {path: converted for path in target.paths if converted is not None}
            used.add(key)
    notes = []
    size = num_train_problems or KNOWN_SIZES.get(str(flat.get("train_dataset.path")), 0)
    for derive in DERIVED:
        derived = derive(flat, size)
        overrides |= derived.overrides
        used |= derived.used
        notes += derived.notes
    return overrides, [*notes, *notes_of(flat, used)]


def flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key to value; lists and empty mappings are values."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def interpolated(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`${section.key}` replaced by its value; one that names a whole section stays as it is."""
    return {key: resolve(value, flat, key) for key, value in flat.items()}


def resolve(value: Any, flat: Mapping[str, Any], key: str, depth: int = 0) -> Any:
    """A value with its interpolations replaced; a lone one keeps the type of its target."""
    if not isinstance(value, str):
        return value
    names = INTERPOLATION.findall(value)
    missing = [name for name in names if name not in flat and not any(other.startswith(f"{name}.") for other in flat)]
    if missing or (names and depth > len(flat)):
        problem = f"`{(missing or names)[0]}` is not in the file" if missing else "refers to itself"
        raise ConfigError([Mistake(key, value, problem, "write the value out")])
    for name in (name for name in names if name in flat):
        target = resolve(flat[name], flat, key, depth + 1)
        if value == f"${{{name}}}":
            return target
        value = value.replace(f"${{{name}}}", str(target))
    return value


def nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted overrides as a nested mapping."""
    tree: dict[str, Any] = {}
    for path, value in overrides.items():
        branch = tree
        *sections, name = path.split(".")
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[name] = value
    return tree


def value_at(config: TrainConfig, path: str) -> Any:
    """The validated value of a dotted path."""
    value: Any = config.model_dump()
    for name in path.split("."):
        value = value[name]
    return value


def table(notes: list[Note]) -> str:
    """Notes as two aligned lists, each line a YAML comment."""
    lines = []
    for carried, title in ((False, "Not carried"), (True, "Carried, with another meaning")):
        rows = [note for note in notes if note.carried == carried]
        width = max((len(note.key) for note in rows), default=0)
        lines += ["#", f"# {title}:", *(f"#   {note.key:<{width}}  {note.reason}" for note in rows)] if rows else []
    return "\n".join(lines)


def read(path: Path) -> Mapping[str, Any]:
    """An AReaL YAML; raises `ConfigError` when it cannot be read as one."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError([Mistake("file", str(path), str(error), "give a readable AReaL YAML")]) from error
    if not isinstance(content, Mapping):
        raise ConfigError([Mistake("file", str(path), "no mapping of settings", "give an AReaL YAML")])
    return content


def main(arguments: list[str] | None = None) -> int:
    """Command line: 0 when converted, 1 with every mistake on stderr, nothing written then."""
    parser = argparse.ArgumentParser(prog="drgrpo-convert-areal", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="an AReaL YAML, such as gsm8k_drgrpo.yaml")
    parser.add_argument("-o", "--output", type=Path, help="write the deployment here instead of printing it")
    parser.add_argument("--num-train-problems", type=int, default=0, help="size of the training split, for epochs")
    options = parser.parse_args(arguments)
    try:
        overrides, notes = convert(read(options.file), options.num_train_problems)
        config = load_config(nested(overrides))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    text = yaml.safe_dump(
        nested({path: value_at(config, path) for path in sorted(overrides)}),
        sort_keys=False,
        allow_unicode=True,
        width=120,
    )
    if options.output:
        options.output.write_text(text)
    else:
        print(text, end="")
    print(table(notes))
    for warning in check_config(config):
        print(f"# Warning: {warning}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
