"""Structural similarity of attribution maps, and the two metrics that compare a map with that of a changed question.

Continuity changes the image (noise), contrastivity the class. Both explain again by the same method.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scl_ray import attribution
from scl_ray.attribution import Batch
from scl_ray.attribution.cam import unit_range
from scl_ray.attribution.registry import PROTOCOL, positive_number
from scl_ray.metrics.metric import Metric
from scl_ray.metrics.undefined import CHANGED, FLAT

WINDOW = 7


def structural_similarity(first: Tensor, second: Tensor, data_range: Tensor | float = 1.0) -> Tensor:
    """Mean SSIM (N,) float64 in [-1,1] of maps (N,H,W), or of rows (N,L), whose values span *data_range*, (N,) or one.

    Equal to ``skimage.metrics.structural_similarity(..., data_range=data_range)``: a uniform window of 7 pixels a side,
    sample covariance, and only windows that lie inside the map. Wang et al., IEEE Transactions on Image Processing
    13(4), 2004. Raises ValueError for maps smaller than the window.
    """
    shape = first.shape[1:]
    if min(shape) < WINDOW:
        size, least = ("x".join(map(str, sides)) for sides in (shape, [WINDOW] * len(shape)))
        raise ValueError(f"SSIM needs maps of at least {least} pixels, not {size}")
    # Variances are differences of means of squares: float32 would lose what the small constants below can tell apart.
    x, y = first.double(), second.double()
    mean_x, mean_y, mean_squares, mean_xy = _window_means(torch.stack([x, y, x * x + y * y, x * y], 1)).unbind(1)
    sample = WINDOW ** len(shape) / (WINDOW ** len(shape) - 1)
    product, squares = mean_x * mean_y, mean_x**2 + mean_y**2
    span = torch.as_tensor(data_range, dtype=x.dtype, device=x.device).view(-1, *[1] * len(shape))
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    similarity = (2 * product + c1) * (2 * sample * (mean_xy - product) + c2)
    similarity /= (squares + c1) * (sample * (mean_squares - squares) + c2)
    return similarity.flatten(1).mean(1)


def _window_means(values: Tensor) -> Tensor:
    """Means over every window that lies inside, along each dimension of *values* (N,k,...) after the second."""
    dimensions = range(2, values.ndim)
    for dimension in dimensions:
        # Differences of running sums: a fifth of the time of average pooling.
        sums = values.cumsum(dimension)
        windows = sums.shape[dimension] - WINDOW + 1
        values = sums.narrow(dimension, WINDOW - 1, windows).clone()
        values.narrow(dimension, 1, windows - 1).sub_(sums.narrow(dimension, 0, windows - 1))
    return values / WINDOW ** len(dimensions)


def explain_noisy(
    batch: Batch, maps: Mapping[str, Tensor], spec: str, *, noise: float, protocol: str
) -> dict[str, Tensor]:
    """The maps of all methods for the images under Gaussian noise of standard deviation *noise*, for the same class.

    ``corrected`` adds noise and clamps to [0,1] in pixel space. ``published`` does both in the normalised space, where
    the clamp cuts off every value below the data's mean.
    """
    added = noise * batch.normal(spec, *batch.images.shape[1:])
    if protocol == "published":
        noisy = (batch.images + added).clamp(0, 1)
    else:
        noisy = batch.from_pixels((batch.to_pixels(batch.images) + added).clamp(0, 1))
    return attribution.explain_many(batch.but(images=noisy), maps)


def explain_other_class(batch: Batch, maps: Mapping[str, Tensor], spec: str, *, protocol: str) -> dict[str, Tensor]:
    """The maps of all methods for one random other class of each image, the same for every metric that asks."""
    passed = batch.passed or attribution.shared_forward(batch, maps)
    classes = passed["class_score"].scores.shape[1]
    if classes < 2:
        raise ValueError("contrastivity needs a network of at least two classes")
    offsets = torch.tensor([int(g.integers(1, classes)) for g in batch.generators("other class")])
    others = (batch.targets + offsets.to(batch.targets)) % classes
    return attribution.explain_many(batch.but(targets=others, passed=passed), maps)


def similarity_of_maps(batch: Batch, maps: Tensor, changed: Tensor, **parameters: Any) -> Tensor:
    """SSIM of each map with its changed one, in [-1,1], each scaled to [0,1] by its minimum and maximum (as CAMs are).

    Under noise higher is better: the explanation is continuous. For another class lower is better: it is contrastive.
    """
    return structural_similarity(unit_range(maps), unit_range(changed))


def noisy_cost(methods: list[str], image_size: int, parameters: Mapping[str, Any]) -> int:
    """Forward passes an image takes."""
    return attribution.cost(methods, image_size)


def other_class_cost(methods: list[str], image_size: int, parameters: Mapping[str, Any]) -> int:
    """Forward passes an image takes, beyond the one that is there."""
    return attribution.cost(methods, image_size, shared=True)


METRICS = {
    "ssim_continuity": Metric(
        similarity_of_maps,
        passes=explain_noisy,
        cost=noisy_cost,
        needs=frozenset({"re-explanation"}),
        parameters={"protocol": PROTOCOL, "noise": positive_number(0.02)},
        undefined=FLAT + CHANGED,
        facet="continuity",
        direction="higher",
        range=(-1, 1),
        citation="Arrighi et al., XAI 2026; SSIM: Wang et al., IEEE TIP 2004",
    ),
    "ssim_contrastivity": Metric(
        similarity_of_maps,
        passes=explain_other_class,
        cost=other_class_cost,
        needs=frozenset({"class", "re-explanation"}),
        undefined=FLAT + CHANGED,
        facet="contrastivity",
        direction="lower",
        range=(-1, 1),
        citation="Arrighi et al., XAI 2026; SSIM: Wang et al., IEEE TIP 2004",
        version=2,
    ),
}
