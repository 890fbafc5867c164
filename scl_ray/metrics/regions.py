"""Faithfulness by regions: take away patches or superpixels instead of pixels, the most important first.

A region goes by the attribution inside it, and the class's softmax probability is read after each.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scl_ray.attribution import Batch
from scl_ray.attribution.registry import PRECISION, PROTOCOL, one_of, positive_integer
from scl_ray.metrics.metric import Metric
from scl_ray.metrics.ranking import most_important_first, positions
from scl_ray.metrics.removal import BASELINES, Answers, joined, of_images, replace_in_order


def remove_patches(
    batch: Batch,
    maps: Mapping[str, Tensor],
    spec: str,
    *,
    patch_size: int,
    regions: int | None = None,
    baseline: str,
    precision: str,
    protocol: str,
) -> dict[str, Answers]:
    """Replace the *regions* (default: all) square patches with the largest sums of each method's map by the *baseline*,
    one a step, the largest first; answers (N,1+steps), the first of the image itself.

    The grid of patches lies in the middle of the image; those at its edges may be cut.
    """
    height, width = batch.images.shape[-2:]
    (top, bottom), (left, right) = _padding(height, patch_size), _padding(width, patch_size)
    columns = (left + width + right) // patch_size
    rows_of, columns_of = (torch.arange(height) + top) // patch_size, (torch.arange(width) + left) // patch_size
    patch_of = (rows_of[:, None] * columns + columns_of).flatten().to(batch.images.device)
    removed_at = {}
    for method, attribution in maps.items():
        padded = F.pad(attribution.double(), (left, right, top, bottom))
        sums = padded.unflatten(2, (columns, patch_size)).unflatten(1, (-1, patch_size)).sum((2, 4))
        removed_at[method] = positions(most_important_first(sums, protocol))[:, patch_of]
    steps = _patches((height, width), patch_size, regions)
    return _removed(batch, removed_at, steps, baseline, precision)


def remove_segments(
    batch: Batch,
    maps: Mapping[str, Tensor],
    spec: str,
    *,
    segments: int,
    baseline: str,
    precision: str,
    protocol: str,
) -> dict[str, Answers]:
    """Replace the superpixels of each image by the *baseline*, one a step, that with the largest mean of each method's
    map first; answers (N,1+steps), the first of the image itself, nan beyond the last of an image's superpixels.

    About *segments* superpixels, by scikit-image's SLIC on the pixels.
    """
    found = _superpixels(batch, segments)
    sizes = [np.bincount(segment) for segment in found]
    removed_at = {}
    for method, attribution in maps.items():
        ranks = []
        for segment, size, values in zip(found, sizes, attribution.flatten(1).double().cpu().numpy(), strict=True):
            means = torch.from_numpy(np.bincount(segment, values) / size)
            ranks.append(positions(most_important_first(means[None], protocol))[0, torch.from_numpy(segment)])
        removed_at[method] = torch.stack(ranks).to(attribution.device)
    steps = torch.tensor([len(size) for size in sizes], device=batch.images.device)
    return _removed(batch, removed_at, steps, baseline, precision)


def patches_cost(methods: list[str], image_size: int, parameters: Mapping[str, Any]) -> int:
    """Forward passes an image takes, beyond the one that is there."""
    return len(methods) * _patches((image_size,) * 2, parameters["patch_size"], parameters.get("regions"))


def segments_cost(methods: list[str], image_size: int, parameters: Mapping[str, Any]) -> int:
    """Forward passes an image takes, about, beyond the one that is there."""
    return len(methods) * min(parameters["segments"], image_size**2)


def region_perturbation(batch: Batch, maps: Tensor, removed: Answers, **parameters: Any) -> Tensor:
    """Area over the perturbation curve: the mean drop of the class's probability over the image itself and after each
    of the L patches, in [-1,1]; higher is more faithful (Quantus, which has the drops, not the area, says lower).

    Samek et al., Evaluating the Visualization of What a Deep Neural Network Has Learned, IEEE TNNLS 28(11), 2017,
    eq. 12; they replace 100 patches by uniform noise.
    """
    return (removed.calibrated[:, :1] - removed.calibrated).double().mean(1)


def selectivity(batch: Batch, maps: Tensor, removed: Answers, **parameters: Any) -> Tensor:
    """Area under the class's probability as all patches are removed, in [0,1]; lower is more faithful.

    The trapezoid over the image itself and the steps / steps (Quantus gives the curve without the image itself).

    Montavon et al., Methods for Interpreting and Understanding Deep Neural Networks, Digital Signal Processing 73,
    2018, section 7.2.
    """
    return torch.trapezoid(removed.calibrated.double(), dim=1) / (removed.calibrated.shape[1] - 1)


def irof(batch: Batch, maps: Tensor, removed: Answers, **parameters: Any) -> Tensor:
    """Area over the curve of the class's probability, by that of the image itself, as all superpixels are removed, at
    most 1; higher is more faithful.

    One minus the trapezoid over the image itself and the steps / steps. Quantus leaves the image itself out, does not
    divide by the number of superpixels, lets it depend on the other images of the batch, and gives the mean over them.

    Rieger & Hansen, IROF: a low resource evaluation metric for explanation methods, arXiv 2003.08747, 2020.
    """
    kept = removed.calibrated.double() / removed.calibrated[:, :1].double()
    trapezoids = (kept[:, :-1] + kept[:, 1:]) / 2
    # A ratio that is not finite is undefined; only what lies beyond the last superpixel is left out.
    steps = ~removed.calibrated[:, 1:].isnan()
    return 1 - torch.where(steps, trapezoids, 0).sum(1) / steps.sum(1)


def class_probability(removed: Answers, **parameters: Any) -> Tensor:
    """The class's probability of the image itself and after each step."""
    return removed.calibrated


def drop_at_steps(removed: Answers, **parameters: Any) -> Tensor:
    """How far the class's probability has dropped after each step."""
    return removed.calibrated[:, :1] - removed.calibrated[:, 1:]


def _removed(
    batch: Batch, removed_at: Mapping[str, Tensor], steps: int | Tensor, baseline: str, precision: str
) -> dict[str, Answers]:
    found = replace_in_order(batch, removed_at, steps, batch.images, BASELINES[baseline](batch), precision)
    unperturbed = of_images(batch)
    return {method: joined(unperturbed, answers) for method, answers in found.items()}


def _superpixels(batch: Batch, segments: int) -> list[np.ndarray]:
    """The superpixel (H*W,) from 0 on of every pixel, for each image."""
    from skimage.segmentation import slic  # here, since it takes a while to import

    pixels = batch.to_pixels(batch.images).permute(0, 2, 3, 1).double().cpu().numpy()
    labels = (slic(image, n_segments=segments, start_label=0).ravel() for image in pixels)
    # SLIC may leave a label out.
    return [np.unique(label, return_inverse=True)[1] for label in labels]


def _padding(side: int, patch_size: int) -> tuple[int, int]:
    """What a side lacks to a whole number of patches, before and after it."""
    lacking = -side % patch_size
    return lacking // 2, lacking - lacking // 2


def _patches(shape: tuple[int, ...], patch_size: int, regions: int | None) -> int:
    """How many patches go. Raises ValueError when the image is one patch."""
    height, width = shape
    patches = -(-height // patch_size) * -(-width // patch_size)
    if patches < 2:
        raise ValueError(f"patch_size={patch_size} takes an image of {height}x{width} as one patch; take a smaller one")
    return min(patches, regions or patches)


def _parameters(baseline: str) -> dict[str, Any]:
    return {
        "protocol": PROTOCOL,
        "baseline": one_of(baseline, *(name for name in BASELINES if name != baseline)),
        "precision": PRECISION,
    }


METRICS = {
    "region_perturbation": Metric(
        region_perturbation,
        passes=remove_patches,
        cost=patches_cost,
        curve=drop_at_steps,
        parameters=_parameters("uniform") | {"patch_size": positive_integer(8), "regions": positive_integer(100)},
        facet="faithfulness",
        direction="higher",
        range=(-1, 1),
        citation="Samek et al., IEEE TNNLS 2017",
    ),
    "selectivity": Metric(
        selectivity,
        passes=remove_patches,
        cost=patches_cost,
        curve=class_probability,
        parameters=_parameters("minimum") | {"patch_size": positive_integer(8)},
        facet="faithfulness",
        direction="lower",
        range=(0, 1),
        citation="Montavon et al., Digital Signal Processing 2018",
    ),
    "irof": Metric(
        irof,
        passes=remove_segments,
        cost=segments_cost,
        parameters=_parameters("mean") | {"segments": positive_integer(100)},
        facet="faithfulness",
        direction="higher",
        range=(-float("inf"), 1),
        citation="Rieger & Hansen, arXiv 2003.08747, 2020",
    ),
}
