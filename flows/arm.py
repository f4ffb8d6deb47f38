"""One arm and seed of a comparison as a process: `python -m flows.arm` with a JSON job on its standard input."""

import json
import sys
from typing import Any

import prefect
from prefect import flow

from drgrpo.cluster.cluster import EngineLost
from drgrpo.cluster.watchdog import watch
from drgrpo.comparison.processes import REFUSED
from drgrpo.config import TrainConfig
from drgrpo.config.errors import ConfigError
from drgrpo.health import HealthStop
from drgrpo.settings import load_settings
from flows.identity import Identity, identity
from flows.recovery import to_the_end
from flows.train import iterate


@flow(name="drgrpo-arm", flow_run_name="{name}", description="One arm and seed of a comparison")
def train_arm(config: TrainConfig, run_id: str, experiment: str, name: str, tags: dict[str, str]) -> dict[str, Any]:
    """Train run `run_id` of a comparison, from where its files end.

    Args:
        config: Resolved and checked.
        run_id: Names the run's directory.
        experiment: MLflow's experiment.
        name: MLflow's name of the run.
        tags: MLflow's tags, the parent run among them.
    """
    own = identity()
    who = Identity(run_id=run_id, experiment=experiment, name=name, tags={**own["tags"], **tags})
    return to_the_end(iterate, config, load_settings(), who)


def main() -> int:
    """Exit status: 0, or that of a refusal, which starting again would not change. Other errors rise."""
    watch()  # its comparison gone, an arm must not keep the device
    job = json.load(sys.stdin)
    shown = [f"{name}:{job['tags'][f'drgrpo.{name}']}" for name in ("comparison", "arm", "seed")]
    try:
        with prefect.tags(*shown):
            train_arm(**job)
    except (ConfigError, HealthStop, EngineLost) as error:  # engines were started again as often as is allowed
        print(error, file=sys.stderr)
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
