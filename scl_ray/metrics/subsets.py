"""Faithfulness by subsets: does a change of the pixels in a set change the score as their attributions say?"""

from scl_ray.metrics.metric import Metric

METRICS: dict[str, Metric] = {}
