"""Faithfulness by random subsets: does taking away a set of pixels change the score as their attributions say?

The subsets depend on no map, so one set of passes serves all methods. The score is the logit, which is what
attributions are of. Whole pixels are taken away, in both protocols (Quantus takes single channel values).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scl_ray.attribution import Batch
from scl_ray.attribution.registry import PRECISION, PROTOCOL, Parameter, one_of, positive_integer
from scl_ray.metrics.correlation import pearson
from scl_ray.metrics.metric import Metric
from scl_ray.metrics.perturbed import answers, replacing
from scl_ray.metrics.removal import BASELINES


class Subsets(NamedTuple):
    """Of each subset, both (N,sizes,runs) float64: the class's score without it, and the sum of its attributions."""

    score: Tensor
    attribution: Tensor


class Correlations(NamedTuple):
    """correlation: (N,sizes) float64 in [-1,1], of the drop of the score with the attribution taken away."""

    correlation: Tensor


def take_subsets(
    batch: Batch, maps: Mapping[str, Tensor], sizes: list[int], runs: int, baseline: str, precision: str
) -> dict[str, Subsets]:
    """Take away *runs* random subsets of each of *sizes* pixels, the same for all methods.

    They are drawn one after the other from the image's own stream for their size: how many a pass takes does not
    matter, and metrics, baselines and precisions meet the same subsets.
    """
    size = batch.images.shape[2:].numel()
    copies, replaced = len(sizes) * runs, replacing(batch, baseline)
    streams = [batch.generators(f"random subsets of {number} pixels") for number in sizes]
    subsets = (
        own.choice(size, number, replace=False, shuffle=False)
        for of_image in zip(*streams, strict=True)
        for own, number in zip(of_image, sizes, strict=True)
        for _ in range(runs)
    )
    values = torch.stack([attribution.flatten(1) for attribution in maps.values()], 1)
    inside: list[Tensor] = []

    def perturbed(images: Tensor, numbers: Tensor) -> Tensor:
        drawn = torch.zeros(len(images), size, dtype=torch.bool, pin_memory=batch.images.is_cuda)
        for taken, subset in zip(drawn.numpy(), subsets, strict=False):
            taken[subset] = True
        # Drawn on the host while the device is busy with the passes before.
        removed = drawn.to(batch.images.device, non_blocking=True)
        start = sum(map(len, inside))
        for image in range(start // copies, (start + len(images) - 1) // copies + 1):
            own = removed[max(0, image * copies - start) : (image + 1) * copies - start]
            inside.append(own.double() @ values[image].double().mT)
        return replaced(images, removed)

    score = answers(batch, copies, perturbed, precision).score.unflatten(1, (len(sizes), runs))
    attributions = torch.cat(inside).view(*score.shape, len(maps)).unbind(3)
    return {method: Subsets(score, found) for method, found in zip(maps, attributions, strict=True)}


def take_random_pixels(
    batch: Batch, maps: Mapping[str, Tensor], spec: str, *, subset_size: int | None, runs: int, baseline: str,
    precision: str, protocol: str,
) -> dict[str, Subsets]:  # fmt: skip
    """Take away *runs* random subsets of *subset_size* pixels, by default as many as the image is wide."""
    sizes = _one_size(batch.images.shape[2:], subset_size)
    return take_subsets(batch, maps, sizes, runs, baseline, precision)


def faithfulness_correlation(batch: Batch, maps: Tensor, passed: Subsets, **parameters: Any) -> Tensor:
    """Pearson's correlation, over random subsets of one size, of the attribution taken away with the drop of the
    class's score, in [-1,1]; higher is more faithful.

    Bhatt et al., Evaluating and Aggregating Feature-based Model Explanations, IJCAI 2020, definition 3.
    """
    return _correlation(passed)[:, 0]


def take_growing_subsets(
    batch: Batch, maps: Mapping[str, Tensor], spec: str, *, n: int | None, runs: int, baseline: str, precision: str,
    protocol: str,
) -> dict[str, Correlations]:  # fmt: skip
    """Take away *runs* random subsets of *n* pixels, by default of 1, 4, 16, … up to four fifths of the image."""
    sizes = _sizes(batch.images.shape[2:], n)
    found = take_subsets(batch, maps, sizes, runs, baseline, precision)
    return {method: Correlations(_correlation(subsets)) for method, subsets in found.items()}


def sensitivity_n(batch: Batch, maps: Tensor, passed: Correlations, **parameters: Any) -> Tensor:
    """Pearson's correlation, over random subsets of n pixels, of the attribution taken away with the drop of the
    class's score, averaged over n, in [-1,1]; higher is more faithful. The curve is over n.

    Quantus departs from the paper: it takes pixels away in the order of the map and correlates over the images of the
    batch, which gives no value for an image. Here the paper's definition holds.

    Ancona et al., Towards Better Understanding of Gradient-based Attribution Methods, ICLR 2018, section 4.
    """
    return passed.correlation.mean(1)


def correlation_by_size(passed: Correlations, **parameters: Any) -> Tensor:
    """The correlation for each n."""
    return passed.correlation


def _correlation(subsets: Subsets) -> Tensor:
    # The drop is the score before, which is the same for all subsets, less the score after.
    found = pearson(subsets.attribution.flatten(0, 1), -subsets.score.flatten(0, 1))
    return found.view(subsets.score.shape[:2])


def _sizes(shape: tuple[int, ...], n: int | None) -> list[int]:
    """1, 4, 16, … up to four fifths of the pixels, or *n*. Raises ValueError for one that leaves none."""
    if n is not None:
        return _one_size(shape, n)
    height, width = shape
    return [4**power for power in range((height * width).bit_length()) if 4**power <= 0.8 * height * width]


def _one_size(shape: tuple[int, ...], subset_size: int | None) -> list[int]:
    """*subset_size*, by default the image's width. Raises ValueError for one that leaves no pixel."""
    height, width = shape
    size = subset_size or width
    if size >= height * width:
        raise ValueError(f"a subset of {size} leaves none of {height * width} pixels; take a smaller one")
    return [size]


def pixels_cost(methods: list[str], image_size: int, parameters: Mapping[str, Any]) -> int:
    """Forward passes an image takes."""
    return len(_one_size((image_size, image_size), parameters["subset_size"])) * int(parameters["runs"])


def growing_cost(methods: list[str], image_size: int, parameters: Mapping[str, Any]) -> int:
    """Forward passes an image takes."""
    return len(_sizes((image_size, image_size), parameters["n"])) * int(parameters["runs"])


_RUNS = Parameter(100, lambda runs: positive_integer(100).is_valid(runs) and runs > 2, "a whole number of at least 3")
_SHARED = {"protocol": PROTOCOL, "runs": _RUNS, "baseline": one_of(*BASELINES), "precision": PRECISION}

METRICS = {
    "faithfulness_correlation": Metric(
        faithfulness_correlation,
        passes=take_random_pixels,
        cost=pixels_cost,
        parameters=_SHARED | {"subset_size": positive_integer(None)},
        facet="faithfulness",
        direction="higher",
        range=(-1, 1),
        citation="Bhatt et al., IJCAI 2020",
    ),
    "sensitivity_n": Metric(
        sensitivity_n,
        passes=take_growing_subsets,
        cost=growing_cost,
        curve=correlation_by_size,
        parameters=_SHARED | {"n": positive_integer(None)},
        facet="faithfulness",
        direction="higher",
        range=(-1, 1),
        citation="Ancona et al., ICLR 2018",
    ),
}
