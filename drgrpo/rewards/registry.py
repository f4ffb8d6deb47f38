"""Reward functions by name: the built-in ones, or a user's own by dotted path."""

import asyncio
import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping

RewardFunction = Callable[..., float]
"""`fn(completion: str, answer: str, **problem) -> float`; `problem`: question, answer_mode, the row's other columns."""

BUILT_IN: Mapping[str, str] = {
    "gsm8k": "drgrpo.rewards.gsm8k:gsm8k",
    "math": "drgrpo.rewards.mathematics:math_reward",
    "number": "drgrpo.rewards.bare_number:number",
    "format": "drgrpo.rewards.form:format_reward",
}


def name_errors(names: Iterable[str]) -> list[str]:
    """One message for every name that is neither built in nor a dotted path; imports nothing."""
    unknown = [name for name in names if name not in BUILT_IN and not _is_dotted_path(name)]
    return [f"unknown reward function {name!r}{_suggestion(name)}" for name in unknown]


def load_reward_functions(names: Iterable[str]) -> dict[str, RewardFunction]:
    """Import every function; the keys are the names as given.

    Raises ValueError naming every function that is unknown, cannot be imported or has another signature.
    """
    names = list(names)
    functions: dict[str, RewardFunction] = {}
    errors = name_errors(names)
    for name in names:
        if name in BUILT_IN or _is_dotted_path(name):
            try:
                functions[name] = _load(BUILT_IN.get(name, name))
            except Exception as error:
                errors.append(f"reward function {name!r}: {type(error).__name__}: {error}")
    if errors:
        raise ValueError("; ".join(errors))
    return functions


def accepted_keywords(function: RewardFunction) -> frozenset[str] | None:
    """The names that `function` takes by keyword after completion and answer; None if it has `**kwargs`."""
    parameters = list(inspect.signature(function).parameters.values())
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return frozenset(parameter.name for parameter in parameters[2:])


def _is_dotted_path(name: str) -> bool:
    module, separator, attribute = name.rpartition(":" if ":" in name else ".")
    return bool(separator) and attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))


def _suggestion(name: str) -> str:
    close = difflib.get_close_matches(name.lower(), BUILT_IN, n=1, cutoff=0.5)
    nearest = f": did you mean {close[0]!r}?" if close else ":"
    return f"{nearest} built in are {', '.join(sorted(BUILT_IN))}; your own is `package.module:function`"


def _load(path: str) -> RewardFunction:
    module, _, attribute = path.rpartition(":" if ":" in path else ".")
    function: RewardFunction = getattr(importlib.import_module(module), attribute)
    if not callable(function):
        raise TypeError(f"{attribute} in {module} is no function")
    if asyncio.iscoroutinefunction(function):
        raise TypeError("a coroutine function cannot grade; write a plain function")
    inspect.signature(function).bind_partial("completion", "answer")
    return function
