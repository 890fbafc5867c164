"""Sufficiency: do images with like maps get like predictions?"""

from scl_ray.metrics.metric import Metric

METRICS: dict[str, Metric] = {}
