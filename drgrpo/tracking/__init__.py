"""Tracking of a run in MLflow: nothing is lost while the server is away, and a resumed run has no doubled points.

Loading a run's policy takes three lines:

    from drgrpo.tracking import policy_path
    path = policy_path("0123456789abcdef0123456789abcdef")
    model = transformers.AutoModelForCausalLM.from_pretrained(path)

`python -m drgrpo.tracking TRACKING_URI SPOOL_DIR` delivers what a run left in its spool after an outage.
"""

from drgrpo.tracking.access import check_tracking_uri, deliver_spools, policy_path
from drgrpo.tracking.store import MlflowAway, TrackingError
from drgrpo.tracking.tracker import Tracker

__all__ = ["MlflowAway", "Tracker", "TrackingError", "check_tracking_uri", "deliver_spools", "policy_path"]
