"""Methods that share a score out layer by layer, so that the shares add up to it."""

from scl_ray.attribution.method import Method

METHODS: dict[str, Method] = {}
