"""Faithfulness by remove-and-debias: pixels are replaced by what their neighbours say."""

from scl_ray.metrics.metric import Metric

METRICS: dict[str, Metric] = {}
