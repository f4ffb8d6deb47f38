"""A policy in MLflow: a logged model that names the place of the weights; they are not uploaded."""

import tempfile
from collections.abc import Mapping

from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.models.utils import get_external_mlflow_model_spec
from mlflow.tracking import MlflowClient

POLICY_TAG = "drgrpo.policy"


def record_policy(
    client: MlflowClient, run_id: str, uri: str, step: int, metrics: Mapping[str, float], timestamp: int
) -> None:
    """Log the policy at `uri` once per run and step, link it with `metrics`, and tag the run with its newest policy.

    Repeating the call, also after a crash in the middle of it, changes nothing.
    """
    experiment_id = client.get_run(run_id).info.experiment_id
    model = _find(client, experiment_id, run_id, step) or _create(client, experiment_id, run_id, uri, step)
    if model.status != LoggedModelStatus.READY:
        _complete(client, run_id, model, step)
    points = [_point(client, run_id, key, value, step, timestamp, model.model_id) for key, value in metrics.items()]
    if points:
        client.log_batch(run_id, metrics=points)
    client.set_tag(run_id, POLICY_TAG, uri)


def _name(step: int) -> str:
    return f"policy-step-{step}"


def _find(client: MlflowClient, experiment_id: str, run_id: str, step: int) -> LoggedModel | None:
    query = f"source_run_id = '{run_id}' AND name = '{_name(step)}'"
    found = client.search_logged_models([experiment_id], filter_string=query)
    return found[0] if found else None


def _create(client: MlflowClient, experiment_id: str, run_id: str, uri: str, step: int) -> LoggedModel:
    return client.create_logged_model(
        experiment_id,
        name=_name(step),
        source_run_id=run_id,
        tags={"mlflow.model.isExternal": "true"},
        params={"uri": uri, "step": str(step)},
        model_type="policy",
    )


def _complete(client: MlflowClient, run_id: str, model: LoggedModel, step: int) -> None:
    # The model registry needs an MLmodel file; this one says that the weights are elsewhere.
    with tempfile.TemporaryDirectory() as folder:
        get_external_mlflow_model_spec(model).save(f"{folder}/MLmodel")
        client.log_model_artifacts(model.model_id, folder)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def _point(
    client: MlflowClient, run_id: str, key: str, value: float, step: int, timestamp: int, model_id: str
) -> Metric:
    # A point that the run already has at this step is linked, not logged a second time beside itself.
    for known in client.get_metric_history(run_id, key):
        if known.step == step:
            value, timestamp = known.value, known.timestamp
    return Metric(key, value, timestamp, step, model_id=model_id, run_id=run_id)
