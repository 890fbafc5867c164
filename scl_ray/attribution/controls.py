"""Controls: maps that look like explanations and know nothing of the network."""

from scl_ray.attribution.method import Method

METHODS: dict[str, Method] = {}
