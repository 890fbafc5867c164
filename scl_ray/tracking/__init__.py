"""The sweep in MLflow: one experiment per sweep name, a parent run for the sweep, a child run per trial.

What is logged is read back from MLflow, by experiment and by the tags ``sweep`` and ``trial``, and only what is new is
written. So logging is idempotent: it may stop anywhere, and running it again completes it and repeats nothing.
"""

from scl_ray.tracking.address import PAGE, check, tracking_uri, ui_command
from scl_ray.tracking.connection import TrackingError
from scl_ray.tracking.entries import Means, Record
from scl_ray.tracking.networks import log_networks
from scl_ray.tracking.writing import log_sweep

__all__ = [
    "PAGE",
    "Means",
    "Record",
    "TrackingError",
    "check",
    "log_networks",
    "log_sweep",
    "tracking_uri",
    "ui_command",
]
