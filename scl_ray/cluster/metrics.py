"""What a running sweep tells Prometheus, at the endpoint that Ray's node of the driver has anyway.

All of it is measured by the driver, from what coordinators report; Ray itself sends it on, a few seconds later, with
``ray_`` before each name.
"""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from ray import tune
from ray.util import metrics

from scl_ray.cluster.progress import Progress

SET_EVERY = 5.0  # seconds between two looks at what changes all the time
BOUNDARIES = [1, 3, 10, 30, 100, 300, 1000, 3000]  # seconds


class Metric(NamedTuple):
    """One of Prometheus' metrics: its kind, what it is, and its tags beside ``sweep``."""

    kind: type[metrics.Metric]
    description: str
    tags: tuple[str, ...] = ()
    options: Mapping[str, Any] = {}


METRICS = {
    "scl_ray_trials": Metric(metrics.Gauge, "Trials that this run works on, by state.", ("state",)),
    "scl_ray_shards": Metric(metrics.Gauge, "Shards of their evaluation, by state.", ("state",)),
    "scl_ray_slots": Metric(metrics.Gauge, "Training slots that the cluster offers."),
    "scl_ray_images_explained_total": Metric(metrics.Counter, "Images explained and scored."),
    "scl_ray_shard_seconds": Metric(
        metrics.Histogram, "What a shard took, in seconds.", options={"boundaries": BOUNDARIES}
    ),
    "scl_ray_retries_total": Metric(metrics.Counter, "Work that was lost and begun again."),
    "scl_ray_written_bytes_total": Metric(metrics.Counter, "Bytes of results and checkpoints written to the store."),
}


class Measuring(tune.Callback):
    """Has Ray's metrics follow the *sweep* as its *progress* view does."""

    def __init__(self, sweep: str, progress: Progress) -> None:
        self.progress, self.set_at = progress, 0.0
        self.metrics: dict[str, Any] = {}
        for name, metric in METRICS.items():
            made = metric.kind(name, metric.description, tag_keys=("sweep", *metric.tags), **metric.options)
            made.set_default_tags({"sweep": sweep})
            self.metrics[name] = made

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for a restore that a sweep never makes.
        return {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        written = 0
        match result["phase"]:
            case "training":
                written = result["reached"].get("bytes", 0)
            case "evaluating":
                self.metrics["scl_ray_images_explained_total"].inc(result["shard_images"])
                self.metrics["scl_ray_shard_seconds"].observe(result["slot_seconds"])
                written = result["bytes"]
            case "retry":
                self.metrics["scl_ray_retries_total"].inc()
        if written:
            self.metrics["scl_ray_written_bytes_total"].inc(written)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.metrics["scl_ray_retries_total"].inc()

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        if time.monotonic() - self.set_at > SET_EVERY:
            self.set()

    def on_experiment_end(self, trials: list[Any], **_: Any) -> None:
        self.set()

    def set(self) -> None:
        """Say how things stand."""
        self.set_at = time.monotonic()
        phases, shards = self.progress.counts()
        for state in ("waiting", "training", "evaluating", "done", "failed", "stopped"):
            self.metrics["scl_ray_trials"].set(phases[state], {"state": state})
        for state, count in shards.items():
            self.metrics["scl_ray_shards"].set(count, {"state": state})
        self.metrics["scl_ray_slots"].set(self.progress.slots)
