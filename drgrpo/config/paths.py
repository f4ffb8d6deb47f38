"""Dotted paths of the configuration: which exist, what each accepts, and which one a mistyped path meant."""

import difflib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from drgrpo.config.train import TrainConfig

# Names that people bring from other trainers and that spelling alone does not lead home.
KNOWN_AS = {
    "beta": "loss.kl_coef",
    "epsilon": "loss.clip_eps_low",
    "epsilon_high": "loss.clip_eps_high",
    "learning_rate": "optimizer.lr",
    "loss_type": "loss.aggregation",
    "lr_scheduler_type": "optimizer.schedule",
    "max_completion_length": "rollout.max_completion_tokens",
    "max_grad_norm": "optimizer.grad_clip",
    "max_prompt_length": "data.max_prompt_tokens",
    "max_steps": "total_steps",
    "num_generations": "rollout.group_size",
    "reward_weights": "reward.functions",
    "scale_rewards": "adv_norm.std_level",
}


def walk(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every leaf field below a model, as (dotted path, field)."""
    for name, info in model.model_fields.items():
        path = f"{prefix}{name}"
        if is_section(info):
            yield from walk(info.annotation, f"{path}.")  # type: ignore[arg-type]
        else:
            yield path, info


def is_section(info: FieldInfo) -> bool:
    """True for a field that holds further fields."""
    return isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)


FIELDS: dict[str, FieldInfo] = dict(walk(TrainConfig))
SECTIONS: frozenset[str] = frozenset(path[:i] for path in FIELDS for i, letter in enumerate(path) if letter == ".")
MAPPINGS: frozenset[str] = frozenset(path for path, info in FIELDS.items() if get_origin(info.annotation) is dict)


def split_path(path: str) -> tuple[str, ...] | None:
    """Keys that lead to a dotted path, or None when it names nothing.

    What follows a mapping field is one key, dots and all: `reward.functions.my_package.brevity`.
    """
    if path in FIELDS or path in SECTIONS:
        return tuple(path.split("."))
    for mapping in MAPPINGS:
        if path.startswith(f"{mapping}."):
            return (*mapping.split("."), path[len(mapping) + 1 :])
    return None


def nearest(path: str, candidates: tuple[str, ...] = ()) -> str:
    """The valid path that a mistyped one most likely meant; empty when none is near.

    An equal last name in another section beats a similar spelling of the whole.
    """
    known = (*FIELDS, *SECTIONS, *candidates)
    leaf = path.rsplit(".", 1)[-1]
    same_leaf = [name for name in FIELDS if name.rsplit(".", 1)[-1] == leaf]
    if leaf in KNOWN_AS:
        return KNOWN_AS[leaf]
    if same_leaf:
        return difflib.get_close_matches(path, same_leaf, n=1, cutoff=0.0)[0]
    by_spelling = difflib.get_close_matches(path, known, n=1, cutoff=0.7)
    if by_spelling:
        return by_spelling[0]
    leaves = {name.rsplit(".", 1)[-1]: name for name in FIELDS}
    by_leaf = difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.7)
    return leaves[by_leaf[0]] if by_leaf else ""


def did_you_mean(path: str, candidates: tuple[str, ...] = ()) -> str:
    """Remedy for a path that does not exist."""
    suggestion = nearest(path, candidates)
    if suggestion:
        return f"did you mean `{suggestion}`?"
    section = path.rpartition(".")[0]
    names = sorted(name for name in FIELDS if name.startswith(f"{section}.")) if section in SECTIONS else []
    return f"there are: {', '.join(names or sorted({name.partition('.')[0] for name in FIELDS}))}"


def expected(info: FieldInfo) -> str:
    """What a field accepts, in words: type and bounds."""
    kind = type_name(info.annotation)
    bounds = []
    for bound in info.metadata:
        match bound:
            case Ge(ge=low):
                bounds.append(f"≥ {low}")
            case Gt(gt=low):
                bounds.append(f"> {low}")
            case Le(le=high):
                bounds.append(f"≤ {high}")
            case Lt(lt=high):
                bounds.append(f"< {high}")
            case MinLen():
                bounds.append("not empty")
    return f"{kind}, {', '.join(bounds)}" if bounds else kind


def type_name(annotation: Any) -> str:
    """A type in the words of the documentation."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{argument}`" for argument in arguments)
    if origin is dict:
        return f"mapping of {type_name(arguments[0])} to {type_name(arguments[1])}"
    if origin is list:
        return f"list of {type_name(arguments[0])}"
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(argument) for argument in arguments)
    if origin is Annotated:
        return type_name(arguments[0])
    names = {bool: "true or false", int: "integer", float: "number", str: "text", Path: "directory", SecretStr: "text"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))
