"""Reaching MLflow outside a run: the check before a start, a run's policy, and what an outage left behind."""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from drgrpo.config.errors import ConfigError
from drgrpo.config.output_lock import hold_output_directory
from drgrpo.redaction import mask
from drgrpo.tracking.policy import POLICY_TAG
from drgrpo.tracking.spool import Spool
from drgrpo.tracking.store import MlflowStore, TrackingError

_SCHEMES = ("http", "https", "databricks", "sqlite", "postgresql", "mysql", "mssql")


def check_tracking_uri(uri: str, *, field: str = "DRGRPO_MLFLOW_TRACKING_URI") -> None:
    """Ask MLflow for an answer before anything heavy starts.

    Raises:
        TrackingError: Naming the field, its value and a remedy; `MlflowAway` when the store may come back.
    """
    remedy = (
        f"start one with `make serve`, or set {field} to a server (http://host:port) or sqlite:////absolute/path.db"
    )
    parts = urlsplit(uri)
    if parts.scheme.partition("+")[0] not in _SCHEMES and uri != "databricks":
        raise TrackingError(f"{field} = {_shown(uri)}: neither a server nor a database; {remedy}")
    folder = Path(unquote(parts.path)[1:]).parent
    if parts.scheme == "sqlite" and not os.access(folder, os.W_OK):
        raise TrackingError(f"{field} = {_shown(uri)}: the folder {folder} is missing or not writable; {remedy}")
    try:
        MlflowStore(uri).ping()
    except TrackingError as error:
        raise type(error)(
            f"{field} = {_shown(uri)}: MLflow does not answer ({mask(str(error))[:300]}); {remedy}"
        ) from error


def _shown(uri: str) -> str:
    """Without a login, also where the scheme was forgotten."""
    return repr(mask(uri) if "://" in uri else mask(f"://{uri}").removeprefix("://"))


def policy_path(run_id: str, tracking_uri: str = "") -> Path:
    """Directory of a run's newest policy, for `from_pretrained`; no URI means `MLFLOW_TRACKING_URI`.

    Raises:
        TrackingError: Unknown run, a run without a policy, or a policy that is not on this machine.
    """
    uri = MlflowStore(tracking_uri).tags(run_id).get(POLICY_TAG)
    if uri is None:
        raise TrackingError(f"run {run_id} has no policy yet: it is logged at the end of a run (checkpoint.export)")
    path = Path(unquote(urlsplit(uri).path))
    if not uri.startswith("file://") or not path.is_dir():
        raise TrackingError(f"run {run_id}: its policy is at {uri}, which is not a directory on this machine")
    return path


def deliver_spools(uri: str, spool_dir: Path, *, timeout_s: float = 60.0) -> int:
    """Deliver what earlier runs left in `spool_dir`; returns the number of events that still wait.

    Raises:
        TrackingError: Naming the process that delivers them already, a run that goes on for example.
    """
    try:
        with hold_output_directory(spool_dir):
            store = MlflowStore(uri)
    except ConfigError as error:
        raise TrackingError(str(error)) from None
    return sum(Spool(journal, store.apply).close(timeout_s) for journal in sorted(spool_dir.glob("*.jsonl")))
