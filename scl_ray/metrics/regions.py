"""Faithfulness by regions: take away patches or superpixels instead of pixels."""

from scl_ray.metrics.metric import Metric

METRICS: dict[str, Metric] = {}
