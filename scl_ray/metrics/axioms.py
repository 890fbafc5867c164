"""Axioms that an attribution should satisfy, measured."""

from scl_ray.metrics.metric import Metric

METRICS: dict[str, Metric] = {}
