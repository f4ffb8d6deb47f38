"""What a run is made of, read and judged together: configuration, settings of the machine, where it starts."""

from collections.abc import Mapping
from typing import Any

from drgrpo.config import TrainConfig
from drgrpo.config.checks import CHECKS, Checks
from drgrpo.config.doubt import in_doubt
from drgrpo.config.errors import ConfigError
from drgrpo.origin import Origin, check_origin, parse_origin
from drgrpo.preflight import judge, passed
from drgrpo.rollback import is_tracked
from drgrpo.settings import Settings, read_settings


def checked_run(
    config: TrainConfig | Mapping[str, Any],
    overrides: Mapping[str, Any],
    resume_from: str,
    *,
    own_id: str,
    checks: Checks = CHECKS,
) -> tuple[TrainConfig, Settings, Origin | None]:
    """The checked configuration, the settings of the machine, and where the run starts: all that a run is made of.

    `own_id` is that of a run that starts afresh, or has begun already under this id.

    Raises ConfigError with every mistake in all three, before anything of the run is written.
    """
    settings, mistakes = read_settings()
    origin = None
    try:
        if not in_doubt(mistakes, "DRGRPO_ROOT", "DRGRPO_RUNS_DIR"):
            origin = parse_origin(resume_from, settings.runs_dir)
    except ConfigError as error:
        mistakes += error.mistakes
    run_id = origin.run_id if origin and origin.step is None else own_id
    tracked = bool(run_id) and is_tracked(run_id, settings.runs_dir)
    resolved, mistakes = judge(config, overrides, settings, checks=checks, known=mistakes, is_tracked=tracked)
    if origin:
        found = check_origin(origin, resolved, settings.runs_dir, own_id=own_id)
        mistakes += [mistake for mistake in found if not in_doubt(mistakes, mistake.field)]
    return passed(resolved, mistakes, checks), settings, origin
