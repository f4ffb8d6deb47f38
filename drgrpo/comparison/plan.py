"""What a comparison trains: every arm with every seed, resolved and checked before anything starts."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drgrpo.config import TrainConfig
from drgrpo.config.checks import CHECKS
from drgrpo.config.errors import ConfigError, Mistake
from drgrpo.config.overrides import config_difference, flatten, recipe_difference, resolve_overrides
from drgrpo.description import read_description
from drgrpo.preflight import judge, passed
from drgrpo.run_id import check_run_id
from drgrpo.settings import Settings

Arms = Mapping[str, Mapping[str, Any]]
"""Name of an arm to its overrides."""

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_NAMING = "give 1 to 40 lower-case letters, digits and -, beginning with a letter or digit"
# What is trained on and how it is scored: scores of arms that differ in it cannot be paired.
_SHARED = ("data.", "evaluation.", "reward.answer_mode")
_FREE = ("evaluation.every_steps", "evaluation.num_shown")


@dataclass(frozen=True)
class ArmRun:
    """One training run of a comparison.

    Attributes:
        arm: Name.
        seed: The configuration's `seed`; problems of each step and seeds of samples follow from it.
        overrides: Of this arm, on top of the comparison's.
        config: Resolved.
        run_id: `<comparison>-<arm>-<seed>`, so that the same run is found again.
    """

    arm: str
    seed: int
    overrides: Mapping[str, Any]
    config: TrainConfig
    run_id: str

    @property
    def label(self) -> str:
        """`<arm>-<seed>`."""
        return f"{self.arm}-{self.seed}"

    @property
    def num_devices(self) -> int:
        """GPUs that the run takes, where there are any: one for each rank, which engines share."""
        return self.config.trainer.num_ranks


class _OfArms(Mistake):
    """A mistake that says in whose configuration it is."""

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}"


def plan_arms(
    config: TrainConfig,
    overrides: Mapping[str, Any],
    arms: Arms,
    seeds: Sequence[int],
    settings: Settings,
    run_id: str,
    *,
    is_tracked: bool = False,
) -> list[ArmRun]:
    """The runs of comparison `run_id`, seed by seed: what ends early has whole pairs.

    `is_tracked` is for `judge`.
    Raises ConfigError with every mistake of every arm, the arm named.
    """
    common, shared_mistakes = resolve_overrides(config, overrides)
    found: dict[str, list[Mistake]] = {name: [] for name in arms}
    configs: dict[str, TrainConfig] = {}
    for name, changes in arms.items():
        configs[name], mistakes = judge(common, changes, settings, known=shared_mistakes, is_tracked=is_tracked)
        found[name] += [
            mistake for mistake in mistakes if mistake not in shared_mistakes and mistake.severity == "error"
        ]
    for name, resolved in configs.items():
        found[name] += _unpaired(resolved, next(iter(configs.values())), arms[name])
    mistakes = [*shared_mistakes, *_of_lists(arms, seeds), *_told(found)]
    if mistakes:
        raise ConfigError(mistakes)
    runs = [_run(name, seed, arms[name], configs[name], run_id) for seed in seeds for name in arms]
    if changed := [mistake for run in runs for mistake in _changed(run, settings)]:
        raise ConfigError(changed)
    for resolved in configs.values():
        passed(resolved, [], CHECKS)
    return runs


def _of_lists(arms: Arms, seeds: Sequence[int]) -> list[Mistake]:
    """Mistakes of `arms` and `seeds` themselves."""
    mistakes = [Mistake("arms", name, "not the name of an arm", _NAMING) for name in arms if not _NAME.fullmatch(name)]
    if not arms:
        mistakes.append(Mistake("arms", dict(arms), "nothing to train", 'name arms, e.g. {"dr-grpo": {}}'))
    if not seeds:
        mistakes.append(Mistake("seeds", list(seeds), "nothing to train", "give one or more, e.g. [1, 2, 3]"))
    mistakes += [
        Mistake("seeds", seed, "there twice", "give each seed once") for seed, n in Counter(seeds).items() if n > 1
    ]
    return mistakes + [
        Mistake("seeds", seed, "not a seed", "give integers from 0 to 2147483647")
        for seed in seeds
        if not 0 <= seed < 2**31
    ]


def _unpaired(config: TrainConfig, first: TrainConfig, overrides: Mapping[str, Any]) -> list[Mistake]:
    """What keeps an arm from being paired with the first one, seed by seed."""
    remedy = "give it to all arms, as an override of the comparison"
    mistakes = [
        Mistake(field, new, f"the first arm has {old!r}, and arms train and are scored on the same problems", remedy)
        for field, (old, new) in config_difference(first, config).items()
        if field.startswith(_SHARED) and field not in _FREE
    ]
    mistakes += [
        Mistake(field, value, "the arm would go on with another learning rate than its own", "set it to warn or stop")
        for field, value in flatten(config).items()
        if field.startswith("health.") and value == "rollback"
    ]
    if "seed" in overrides:
        mistakes.append(Mistake("seed", overrides["seed"], "an arm has every seed of `seeds`", "leave it out"))
    return mistakes


def _told(found: Mapping[str, Sequence[Mistake]]) -> list[Mistake]:
    """Each mistake once, with the names of the arms that have it."""
    arms_of: dict[str, list[str]] = {}
    for name, mistakes in found.items():
        for mistake in mistakes:
            arms_of.setdefault(str(mistake), []).append(name)
    return [
        _OfArms("every arm" if len(names) == len(found) > 1 else f"arm {', '.join(names)}", None, text, "")
        for text, names in arms_of.items()
    ]


def _run(name: str, seed: int, overrides: Mapping[str, Any], config: TrainConfig, run_id: str) -> ArmRun:
    seeded = config.model_copy(update={"seed": seed})
    return ArmRun(name, seed, overrides, seeded, check_run_id(f"{run_id}-{name}-{seed}"))


def _changed(run: ArmRun, settings: Settings) -> list[Mistake]:
    """What is different from the run of that name that has been started already."""
    description = read_description(settings.runs_dir / run.run_id)
    difference = recipe_difference(description.config, run.config) if description else {}
    remedy = "continue the comparison unchanged, or start a new one"
    return [
        _OfArms(f"arm {run.label}", None, f"{field} = {new!r}: it was started with {old!r}; {remedy}", "")
        for field, (old, new) in difference.items()
    ]
