"""What the network says of many perturbed copies of each image, in passes of `Batch.at_once`."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from scl_ray.attribution import Batch
from scl_ray.attribution.copies import in_passes
from scl_ray.attribution.registry import one_of
from scl_ray.metrics.removal import BASELINES

# The baselines of metrics that compare the size of attributions with that of the score's change: first the zero of the
# normalised space (the mean image), from which integrated gradients and their like measure.
ZERO_FIRST = one_of("zero", *(name for name in BASELINES if name != "zero"))


class Answers(NamedTuple):
    """Of the class explained: its score (the logit) and its softmax probability; both (N,copies) float64."""

    score: Tensor
    probability: Tensor


def answers(
    batch: Batch, copies: int, perturbed: Callable[[Tensor, Tensor], Tensor], precision: str = "float32"
) -> Answers:
    """The network's answers to *copies* changed copies of each image.

    perturbed: makes the copies (M,C,H,W) from the positions of the images and the numbers of the copies, both (M,)
    int64; it is called for image after image, for every image from copy 0 to the last, as many as a pass takes.

    The softmax is taken in float64, which keeps apart what float32 would round to a probability of one.
    """
    found = []
    for images, numbers in in_passes(batch, copies):
        scores = batch.scores(perturbed(images, numbers), precision)
        found.append(_of_class(scores, batch.targets[images]))
    return Answers(*(torch.cat(parts).view(-1, copies) for parts in zip(*found, strict=True)))


def unperturbed(batch: Batch, precision: str = "float32") -> Answers:
    """The network's answers to the images themselves, both (N,1); in float32 the pass may be there already."""
    passed = batch.passed.get("class_score") if precision == "float32" else None
    scores = batch.scores(batch.images, precision) if passed is None else passed.scores.detach()
    return Answers(*(answer[:, None] for answer in _of_class(scores, batch.targets)))


def replacing(batch: Batch, baseline: str) -> Callable[[Tensor, Tensor], Tensor]:
    """A function that makes copies (M,C,H,W) of *images* (M,), positions in the batch, whose whole pixels *taken*
    (M,H*W) bool are those of the *baseline*, a name of `scl_ray.metrics.removal.BASELINES`."""
    filling = BASELINES[baseline](batch)

    def replaced(images: Tensor, taken: Tensor) -> Tensor:
        return torch.where(
            taken.view(-1, 1, *batch.images.shape[2:]),
            filling.index_select(0, images),
            batch.images.index_select(0, images),
        )

    return replaced


def patches(image: Sequence[int], patch_size: int | None) -> Tensor:
    """The square that each pixel of an *image* (H,W) lies in, as a number (H*W,) int64 of `patch_count`, row by row.

    *patch_size*: pixels to a side, by default an eighth of the image's width. Squares end at the border. Raises
    ValueError for a single one.
    """
    (height, width), (side, _) = image, _squares(image, patch_size)
    return ((torch.arange(height) // side)[:, None] * -(-width // side) + torch.arange(width) // side).flatten()


def patch_count(image: Sequence[int], patch_size: int | None) -> int:
    """How many `patches` there are. Raises ValueError for a single one."""
    return _squares(image, patch_size)[1]


def sums(values: Tensor, groups: Tensor) -> Tensor:
    """Sums (N,G) float64 of the pixels' *values* (N,H,W) over *groups* (N,H*W) numbered 0 to G-1."""
    totals = values.new_zeros((len(values), int(groups.max()) + 1), dtype=torch.float64)
    return totals.scatter_add_(1, groups, values.flatten(1).double())


def _squares(image: Sequence[int], patch_size: int | None) -> tuple[int, int]:
    """Pixels to a side of a square, squares."""
    height, width = image
    side = patch_size or max(1, width // 8)
    squares = -(-height // side) * -(-width // side)
    if squares < 2:
        raise ValueError(f"patch_size={side} takes images of {height}x{width} pixels as one patch; take a smaller one")
    return side, squares


def _of_class(scores: Tensor, targets: Tensor) -> Answers:
    exact = scores.double()
    return Answers(*(of.gather(1, targets[:, None])[:, 0] for of in (exact, exact.softmax(1))))
