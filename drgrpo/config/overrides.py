"""One entry from values to a checked configuration: a mapping, dotted overrides, and every mistake at once."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from drgrpo.config.areal_keys import AREAL_KEYS, level
from drgrpo.config.checks import CHECKS, Checks, check_config
from drgrpo.config.errors import ConfigError, Mistake, shortened
from drgrpo.config.flat import config_difference, config_digest, flatten, recipe_difference, recipe_digest
from drgrpo.config.paths import FIELDS, MAPPINGS, SECTIONS, did_you_mean, expected, split_path
from drgrpo.config.train import TrainConfig

__all__ = [
    "apply_overrides",
    "config_difference",
    "config_digest",
    "flatten",
    "judged_config",
    "load_config",
    "recipe_difference",
    "recipe_digest",
    "resolve_overrides",
]

Values = TrainConfig | Mapping[str, Any]


def load_config(values: Values, overrides: Mapping[str, Any] | None = None, *, checks: Checks = CHECKS) -> TrainConfig:
    """The configuration of a run: `values`, changed by `overrides`, validated and checked.

    Raises `ConfigError` with all mistakes: unknown keys, wrong types, values out of bounds, combinations that cannot
    learn. Warnings are not raised; `check_config` lists them.
    """
    config, mistakes = judged_config(values, overrides or {}, checks)
    if mistakes:
        raise ConfigError(mistakes)
    return config


def judged_config(
    values: Values, overrides: Mapping[str, Any], checks: Checks = CHECKS
) -> tuple[TrainConfig, list[Mistake]]:
    """As `load_config`, with the mistakes returned, and defaults in place of what is invalid."""
    config, mistakes = resolve_overrides(values, overrides)
    invalid = {mistake.field for mistake in mistakes}
    for mistake in check_config(config, checks):
        if mistake.severity == "error" and not invalid.intersection((mistake.field, *mistake.also)):
            mistakes.append(mistake)
    return config, mistakes


def apply_overrides(values: Values, overrides: Mapping[str, Any]) -> TrainConfig:
    """`values` with dotted overrides (`{"optimizer.lr": 2e-6}`), validated but not checked for sense.

    A path is ours or AReaL's (`actor.adv_norm.std_level`). A mapping field is set whole or by key
    (`reward.functions.format`); a section may be given as a mapping of its fields.
    Raises `ConfigError` with all mistakes.
    """
    config, mistakes = resolve_overrides(values, overrides)
    if mistakes:
        raise ConfigError(mistakes)
    return config


def resolve_overrides(values: Values, overrides: Mapping[str, Any]) -> tuple[TrainConfig, list[Mistake]]:
    """As `apply_overrides`, with the mistakes returned, and defaults in place of what is invalid.

    So the rest can still be judged.
    """
    base = values.model_dump() if isinstance(values, BaseModel) else values
    if not isinstance(base, Mapping):
        raise ConfigError([Mistake("configuration", base, "not a mapping", "give settings by section")])
    merged: dict[str, Any] = _copied(base)
    assignments, mistakes = _assignments(overrides)
    for keys, value, _ in assignments.values():
        _put(merged, keys, value)
    try:
        return TrainConfig.model_validate(merged), mistakes
    except ValidationError as error:
        details = error.errors(include_url=False)
    given_as = {path: spelling for path, (_, _, spelling) in assignments.items()}
    by_field = {mistake.field: mistake for mistake in (_mistake(detail, given_as) for detail in details)}
    for detail in details:
        _drop(merged, detail["loc"])
    try:
        config = TrainConfig.model_validate(merged)
    except ValidationError:
        config = TrainConfig()
    return config, [*mistakes, *by_field.values()]


def _copied(value: Any) -> Any:
    return {key: _copied(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value


Assignment = tuple[tuple[str, ...], Any, str]


def _assignments(overrides: Mapping[str, Any]) -> tuple[dict[str, Assignment], list[Mistake]]:
    """Our path -> (keys, value, spelling it was given in), whole fields before their keys; unknown paths as mistakes.

    An AReaL key for several of our fields (`actor.eps_clip`) yields to one for a single field.
    """
    found: dict[str, tuple[int, Assignment]] = {}
    mistakes: list[Mistake] = []
    for spelling, given in _spread(overrides):
        targets = _targets(spelling, given)
        if not targets:
            problem, remedy = "no such setting", did_you_mean(spelling, tuple(AREAL_KEYS))
            mistakes.append(Mistake(spelling, given, problem, remedy))
        for path, keys, value in targets:
            breadth, (_, other_value, other) = found.get(path, (len(targets) + 1, (keys, value, spelling)))
            if breadth == len(targets) and other_value != value:
                problem = f"set twice, here and by `{other}` = {shortened(other_value)}"
                mistakes.append(Mistake(spelling, given, problem, "keep one of the two"))
            elif breadth > len(targets):
                found[path] = (len(targets), (keys, value, spelling))
    return {path: found[path][1] for path in sorted(found, key=lambda path: len(found[path][1][0]))}, mistakes


def _spread(overrides: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested overrides as dotted ones; a mapping field keeps its mapping."""
    for name, value in overrides.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping) and path not in MAPPINGS and (path in SECTIONS or path not in FIELDS) and value:
            yield from _spread(value, f"{path}.")
        else:
            yield path, value


def _targets(path: str, value: Any) -> list[tuple[str, tuple[str, ...], Any]]:
    """(our path, keys, value) for a path of ours or AReaL's; empty when it names nothing."""
    keys = split_path(path)
    if keys is not None:
        return [(path, keys, level(value) if path in ("adv_norm.mean_level", "adv_norm.std_level") else value)]
    areal = AREAL_KEYS.get(path)
    return [(ours, tuple(ours.split(".")), areal.convert(value)) for ours in areal.paths] if areal else []


def _put(tree: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    """Set a nested value; where the base holds something else than a mapping, its own mistake is reported instead.

    A key of a mapping field adds to the field's default when the base leaves the field out.
    """
    for depth, name in enumerate(keys[:-1]):
        path = ".".join(keys[: depth + 1])
        inner = tree.setdefault(name, FIELDS[path].get_default(call_default_factory=True) if path in MAPPINGS else {})
        if not isinstance(inner, dict):
            return
        tree = inner
    tree[keys[-1]] = value


def _drop(tree: dict[str, Any], location: tuple[int | str, ...]) -> None:
    """Remove the offending field; a mapping or list goes as a whole."""
    for depth, name in enumerate(location[:-1]):
        inner = tree.get(str(name))
        if not isinstance(inner, dict) or ".".join(map(str, location[: depth + 1])) in MAPPINGS:
            tree.pop(str(name), None)
            return
        tree = inner
    tree.pop(str(location[-1]), None)


def _mistake(detail: Any, given_as: Mapping[str, str]) -> Mistake:
    """A pydantic error as field, value, problem and remedy."""
    path = _path(detail["loc"])
    field = FIELDS.get(path) or FIELDS.get(next((name for name in MAPPINGS if path.startswith(f"{name}.")), ""))
    if detail["type"] == "extra_forbidden":
        return Mistake(path, detail["input"], "no such setting", did_you_mean(path))
    problem = detail["msg"][0].lower() + detail["msg"][1:]
    spelling = given_as.get(path, path)
    if spelling != path:
        problem += f" (given as `{spelling}`)"
    remedy = f"allowed: {expected(field)}" if field else "give a mapping of its settings"
    return Mistake(path, detail["input"], problem, remedy)


def _path(location: tuple[int | str, ...]) -> str:
    """Dotted path of a pydantic location, without list positions and the names of union members."""
    parts: list[str] = []
    for part in location:
        parts.append(str(part))
        path = ".".join(parts)
        if path in FIELDS and path not in MAPPINGS:
            break
        if ".".join(parts[:-1]) in MAPPINGS:
            break
    return ".".join(parts)
