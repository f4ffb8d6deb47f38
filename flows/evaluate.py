"""Evaluate any model, exported policy or checkpoint on any dataset: the same sampling and grading as in training."""

from typing import Any

from prefect import flow

from drgrpo.config import TrainConfig
from drgrpo.config.checks import EVALUATION_CHECKS
from drgrpo.config.errors import ConfigError, Mistake
from drgrpo.config.output_lock import hold_output_directory
from drgrpo.config.overrides import apply_overrides
from drgrpo.opening import open_run
from drgrpo.preflight import checked_config
from drgrpo.rollback import is_tracked
from drgrpo.settings import load_settings
from drgrpo.stored_policy import stored_policy
from drgrpo.tracking import policy_path
from flows.identity import identity, own_id
from tasks.evaluation import evaluate as evaluate_policy


@flow(name="drgrpo-evaluate", description="Evaluate a model or a stored policy", validate_parameters=True)
def evaluate(
    config: TrainConfig, overrides: dict[str, Any] | None = None, mlflow_run_id: str = "", checkpoint: str = ""
) -> dict[str, float]:
    """Evaluate a policy.

    Args:
        config: The configuration; `model`, `data` and `evaluation` say what is evaluated and on what.
        overrides: Dotted path to value, for example `{"model.path": "smollm2", "evaluation.num_problems": 64}`.
        mlflow_run_id: Evaluate the policy that this training run recorded in MLflow, instead of `model.path`.
        checkpoint: Evaluate a training checkpoint instead: `<run id>` for the run's newest, or `<run id>@<step>`.
    """
    settings, who = load_settings(), identity()
    overrides = dict(overrides or {})
    if mlflow_run_id and checkpoint:
        problem = f"mlflow_run_id = {mlflow_run_id!r} names a policy too"
        raise ConfigError([Mistake("checkpoint", checkpoint, problem, "give one of the two")])
    if mlflow_run_id:
        overrides["model.path"] = str(policy_path(mlflow_run_id, settings.mlflow_tracking_uri))
    if checkpoint:
        model = stored_policy(checkpoint, settings)
        config = apply_overrides(config, {"model.dtype": model.dtype})
        overrides["model.path"] = model.path
    tracked = is_tracked(who["run_id"], settings.runs_dir)
    config = checked_config(config, overrides, settings, checks=EVALUATION_CHECKS, train=False, is_tracked=tracked)
    with (
        hold_output_directory(settings.runs_dir / who["run_id"], own_id()),
        open_run(config, settings, train=False, **who) as run,
    ):
        return evaluate_policy(run, step=0)
