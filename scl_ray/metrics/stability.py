"""Continuity: how much a map changes when the image changes a little."""

from scl_ray.metrics.metric import Metric

METRICS: dict[str, Metric] = {}
