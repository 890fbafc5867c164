"""Faithfulness by remove and debias (ROAD): removed pixels take what their neighbours say, not a baseline.

A baseline leaves the shape of the removed pixels to be seen, which alone may tell the class or hide it. The weighted
mean of the neighbours, with a little noise, leaves no edge.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scl_ray.attribution import Batch
from scl_ray.attribution.registry import PRECISION, PROTOCOL, positive_integer, positive_number
from scl_ray.metrics.metric import Metric
from scl_ray.metrics.ranking import most_important_first, positions
from scl_ray.metrics.removal import Answers, answers

# Half of the eight neighbours, as (row, column), with their weights in the mean; the other half lies opposite.
_NEIGHBOURS = (((0, 1), 1 / 6), ((1, -1), 1 / 12), ((1, 0), 1 / 6), ((1, 1), 1 / 12))


def impute_pixels(
    batch: Batch,
    maps: Mapping[str, Tensor],
    spec: str,
    *,
    percent_per_step: int,
    noise: float,
    precision: str,
    protocol: str,
) -> dict[str, Answers]:
    """Impute the most important *percent_per_step*, twice, three times as many, … below 100 percent of the pixels, by
    each method's map; answers (N,steps).

    Noise of standard deviation *noise* of the pixels' range is added where pixels were removed: the same for all steps,
    methods and specs.
    """
    height, width = batch.images.shape[2:]
    steps = _steps(percent_per_step)
    ranks = torch.cat([positions(most_important_first(attribution, protocol)) for attribution in maps.values()])
    drawn = noise * batch.normal("road", *batch.images.shape[1:])
    noisy = batch.from_pixels(drawn) - batch.from_pixels(torch.zeros_like(drawn))  # a scale, without the shift

    def copies(rows: Tensor, images: Tensor, step: Tensor) -> Tensor:
        removed = ranks[rows] < (step[:, None] + 1) * percent_per_step * height * width // 100
        removed = removed.view(-1, height, width)
        filled = impute(batch.images[images], removed) + noisy[images] * removed[:, None]
        return filled.permute(0, 2, 3, 1).flatten(1)

    return answers(batch, list(maps), steps, copies, precision)


def impute(images: Tensor, removed: Tensor) -> Tensor:
    """*images* (M,C,H,W) float32, where each of the *removed* pixels (M,H,W) bool is the weighted mean of its eight
    neighbours: 1/6 for those beside it, 1/12 for those across, by what lies inside the image. Some pixel must be left.

    One linear system an image. Its matrix, of removed pixels in the order of rows, is symmetric, positive definite and
    zero beyond the neighbours in the next row: LAPACK's Cholesky for bands, in float64, takes a tenth of the time of a
    general sparse solver.
    """
    shape = images.shape[2:]
    known = images.double().masked_fill(removed[:, None], 0)
    right = _sum_of_neighbours(known).cpu().numpy()
    diagonal = _sum_of_neighbours(torch.ones(1, 1, *shape, dtype=torch.float64))[0, 0].numpy()
    filled = known.cpu().numpy()
    for image, sums, gone in zip(filled, right, removed.cpu().numpy(), strict=True):
        if gone.any():
            image[:, gone] = _solve(gone, diagonal[gone], sums[:, gone])
    return torch.from_numpy(filled).to(images)


def road(batch: Batch, maps: Tensor, imputed: Answers, **parameters: Any) -> Tensor:
    """Share of the percentages at which the class explained is still the predicted one, in [0,1]; lower is more
    faithful.

    The paper has the accuracy over the images at each percentage: the mean of the curve over the images, where the
    class explained is the label; this value is its mean over the percentages, for one image. Quantus fails on images of
    several channels.

    Rong et al., A Consistent and Efficient Evaluation Strategy for Attribution Methods, ICML 2022.
    """
    return imputed.kept.mean(1)


def kept_at_steps(imputed: Answers, **parameters: Any) -> Tensor:
    """1 where the class explained is still predicted, at each percentage."""
    return imputed.kept


def road_cost(methods: list[str], image_size: int, parameters: Mapping[str, Any]) -> int:
    """Forward passes an image takes."""
    return len(methods) * _steps(parameters["percent_per_step"])


def _sum_of_neighbours(images: Tensor) -> Tensor:
    """The weighted sum of the eight neighbours of each pixel of (M,C,H,W); nothing lies beyond the border."""
    padded = F.pad(images, (1, 1, 1, 1))
    rows = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    smoothed: Tensor = rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]
    return (smoothed - 4 * images) / 12


def _solve(removed: np.ndarray, diagonal: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Values (C,n) of the n pixels *removed* (H,W): *diagonal* (n,) times each, less the weighted removed neighbours,
    is *right* (C,n).
    """
    from scipy.linalg.lapack import dpbsv  # here, since it takes a while to import

    height, width = removed.shape
    unknowns = len(diagonal)
    index = np.full((height + 1, width + 2), -1)
    index[:height, 1:-1][removed] = np.arange(unknowns)
    pairs = []
    for (down, across), weight in _NEIGHBOURS:
        later = index[down : down + height, 1 + across : 1 + across + width][removed]
        first = np.flatnonzero(later >= 0)
        pairs.append((later[first] - first, first, weight))
    width_of_band = max((int(distance.max()) for distance, *_ in pairs if len(distance)), default=0)
    band = np.zeros((width_of_band + 1, unknowns), order="F")
    band[0] = diagonal
    for distance, first, weight in pairs:
        band[distance, first] = -weight
    _, values, failed = dpbsv(band, np.asfortranarray(right.T), lower=1, overwrite_ab=1, overwrite_b=1)
    assert not failed, "no pixel is left"
    return values.T


def _steps(percent_per_step: int) -> int:
    steps = 99 // percent_per_step
    if not steps:
        raise ValueError(f"percent_per_step={percent_per_step} leaves no pixel at the first step; take fewer than 100")
    return steps


METRICS = {
    "road": Metric(
        road,
        passes=impute_pixels,
        cost=road_cost,
        curve=kept_at_steps,
        parameters={
            "protocol": PROTOCOL,
            "percent_per_step": positive_integer(10),
            "noise": positive_number(0.01),
            "precision": PRECISION,
        },
        facet="faithfulness",
        direction="lower",
        range=(0, 1),
        citation="Rong et al., ICML 2022",
    ),
}
