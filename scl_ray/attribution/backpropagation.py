"""Methods that change how a ReLU passes gradients back."""

from scl_ray.attribution.method import Method

METHODS: dict[str, Method] = {}
