"""The configuration against arbitrary values: a checked configuration, or one error that lists field, value, remedy."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from drgrpo.config import TrainConfig
from drgrpo.config.areal import convert, nested
from drgrpo.config.areal_keys import AREAL_KEYS
from drgrpo.config.checks import check_config
from drgrpo.config.errors import ConfigError
from drgrpo.config.flat import config_digest, flatten, recipe_digest
from drgrpo.config.overrides import load_config
from drgrpo.config.paths import FIELDS, SECTIONS
from drgrpo.run_id import check_run_id
from drgrpo.settings import Settings, unknown_variables

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
fuzzed = settings(max_examples=EXAMPLES, deadline=20_000, suppress_health_check=[HealthCheck.too_slow])

ODD_TEXTS = [
    "",
    " ",
    "\x00",
    "\ud800",
    "\x1b[2J",
    "1e999",
    "nan",
    "0x10",
    "true",
    "null",
    "{question}",
    "../..",
    "9" * 5000,
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(ODD_TEXTS)
    | st.sampled_from(["group", "none", "batch", "constant", "off", "gsm8k", 0, 1, 2, 8, 0.5, -1, 2**63, 1e308, "16"])
)
KEYS = st.sampled_from(sorted({*FIELDS, *SECTIONS, *AREAL_KEYS})) | st.text(max_size=12) | st.sampled_from(ODD_TEXTS)
LEAVES = st.sampled_from(sorted({part for path in FIELDS for part in path.split(".")})) | st.text(max_size=6)
VALUES = st.recursive(
    SCALARS | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(LEAVES, inner, max_size=4),
    max_leaves=10,
)
# As YAML has them, where a key may be anything that can be hashed.
TREES = st.dictionaries(LEAVES | st.integers() | st.none() | st.booleans(), VALUES, max_size=5)


def loaded(values: Any, overrides: Any = None) -> TrainConfig | None:
    """The configuration, or None for an error that may be shown as it is; anything else fails."""
    try:
        return load_config(values, overrides)
    except ConfigError as error:
        assert error.mistakes
        text = str(error)
        assert all(mistake.problem and mistake.remedy for mistake in error.mistakes)
        assert len(text) < 1000 * (1 + len(error.mistakes))
        assert all(character.isprintable() for character in text.replace("\n", "")), repr(text)
        return None


def check(config: TrainConfig | None) -> None:
    """What holds of every configuration that was accepted."""
    if config is None:
        return
    assert not [mistake for mistake in check_config(config) if mistake.severity == "error"]
    numbers = [value for value in flatten(config).values() if isinstance(value, float)]
    assert all(map(math.isfinite, numbers))
    again = load_config(json.loads(config.model_dump_json()))
    assert again == config
    assert (config_digest(again), recipe_digest(again)) == (config_digest(config), recipe_digest(config))


@fuzzed
@given(st.dictionaries(KEYS, VALUES, max_size=5))
@example({"reward.scaling": math.nan})
@example({"data.prompt_template": "\ud800 {question}"})
@example({"reward.functions": {"\x1b[2J": 1.0}})
@example({"optimizer": {"lr": {"lr": {}}}})
def test_arbitrary_overrides_are_an_error_or_a_configuration(overrides: dict[str, Any]) -> None:
    check(loaded({}, overrides))


@fuzzed
@given(TREES, st.dictionaries(KEYS, VALUES, max_size=2))
@example({"model": None}, {"model.path": "x"})
@example({None: 1, 2: {}, "optimizer": {True: 1}}, {})
def test_arbitrary_trees_are_an_error_or_a_configuration(tree: dict[Any, Any], overrides: dict[str, Any]) -> None:
    check(loaded(tree, overrides))


@fuzzed
@given(VALUES)
def test_a_configuration_of_any_type_is_an_error_or_a_configuration(values: Any) -> None:
    check(loaded(values))


YAML_WORDS = ("seed", "optimizer", "lr", "reward", "functions", "1", "1:30", "2001-01-01", "!!python/name:os.system")
YAML_SIGNS = (": ", "\n", "  ", "- ", "? ", "{", "}", "[", "]", "&a ", "*a", "<<: ", "!!binary ", "%TAG", "---\n", "\t")
YAML_PIECES = st.sampled_from([*YAML_WORDS, *YAML_SIGNS, "'", '"', "|", ">"])


@fuzzed
@given(st.text(max_size=200) | st.lists(YAML_PIECES, max_size=30).map("".join))
@example("seed: !!python/object/apply:os.system ['touch /nonexistent/x']")
@example("optimizer: {lr: 2001-01-01}")
@example("seed: 1:30")
def test_arbitrary_yaml_is_an_error_or_a_configuration(text: str) -> None:
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return
    check(loaded(values))


@fuzzed
@given(st.dictionaries(st.sampled_from(sorted(AREAL_KEYS)) | KEYS, SCALARS | VALUES, max_size=6), st.integers(0, 10))
@example({"actor.path": "${actor.path}"}, 0)
def test_an_arbitrary_areal_file_is_an_error_or_overrides(flat: dict[str, Any], num_problems: int) -> None:
    try:
        tree = nested({key: value for key, value in flat.items() if key})
    except (AttributeError, TypeError):
        return  # two of the drawn keys are no tree
    try:
        overrides, notes = convert(tree, num_problems)
    except ConfigError as error:
        assert str(error)
        return
    assert all(note.key for note in notes)
    check(loaded(nested(overrides)))


@fuzzed
@given(st.text(max_size=140) | st.text(alphabet="abcXYZ019-_./\\ \n\x00~", max_size=12))
@example("a" * 129)
@example("abc\n")
@example("\u0661")
def test_an_accepted_run_id_is_one_plain_name_below_the_directory_of_runs(text: str) -> None:
    try:
        check_run_id(text)
    except ConfigError as error:
        assert "not the id of a run" in str(error)
        return
    path = Path("/runs") / text
    assert (path.parent, path.name) == (Path("/runs"), text)
    assert path == Path(os.path.normpath(path)) and text.isascii() and text.isprintable()


@fuzzed
@given(st.dictionaries(st.text(max_size=20).map(lambda name: f"DRGRPO_{name}"), st.text(max_size=20), max_size=4))
@example({"DRGRPO_HUB_TOKE": "hf_abc"})
def test_unknown_variables_are_all_named(environ: Mapping[str, str]) -> None:
    named = {mistake.field for mistake in unknown_variables(environ)}
    assert named == {name for name in environ if name.removeprefix("DRGRPO_").lower() not in Settings.model_fields}
    assert str(ConfigError(unknown_variables(environ)))
