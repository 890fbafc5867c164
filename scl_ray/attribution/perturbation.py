"""Methods that change parts of the image and watch the score."""

from scl_ray.attribution.method import Method

METHODS: dict[str, Method] = {}
