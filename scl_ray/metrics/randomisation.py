"""Randomisation: does the map depend on the class and on what the network has learned?"""

from scl_ray.metrics.metric import Metric

METRICS: dict[str, Metric] = {}
