"""What a baseline publishes names no path of the machine, and its digest is that of what it shows."""

from benchmarks.baseline import published
from drgrpo.config import TrainConfig
from drgrpo.config.overrides import apply_overrides, config_digest, flatten
from tests.unit.comparison_result import result


def found_at(home: str) -> dict[str, object]:
    """The result of a run on a machine with everything below `home`."""
    places = {"model.path": f"{home}/runs/4711/policy", "data.train": f"{home}/gsm8k", "data.eval": f"{home}/gsm8k"}
    config = apply_overrides(TrainConfig(), places | {"rollout.stop": ["\n\n"], "optimizer.lr": 5e-6})
    return result("grpo", 1, 0.0, config=flatten(config), config_digest=config_digest(config))


def test_a_published_result_has_names_for_paths_and_the_digest_of_what_it_shows() -> None:
    here, there = published(found_at("/home/ada")), published(found_at("/scratch/1"))
    assert here == there and "/home" not in str(here)
    shown = {"model.path": "warm-start", "data.train": "gsm8k", "data.eval": "gsm8k"}
    assert here["config"] == found_at("/home/ada")["config"] | shown
    wanted = apply_overrides(TrainConfig(), shown | {"rollout.stop": ["\n\n"], "optimizer.lr": 5e-6})
    assert here["config_digest"] == config_digest(wanted)
    assert here["scores"] == found_at("/home/ada")["scores"]
