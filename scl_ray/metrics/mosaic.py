"""The grid pointing game: does the map find the one image of its class in a mosaic?"""

from scl_ray.metrics.metric import Metric

METRICS: dict[str, Metric] = {}
