"""How the classes lie in the space of the features: clusters, collapse, spread.

Everything is computed in float64 on the features' device, in memory that grows as the features, not as their square.
What is undefined (one class, class means that coincide, …) is None.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

# What costs the square of the number of images, or of features, is measured on no more images than this.
COMPARED = 10_000
CHUNK = 1024
EPSILON = torch.finfo(torch.float64).eps

Values = dict[str, float | None]


def clustering(features: Tensor, labels: Tensor) -> Values:
    """Silhouette, scatter ratio, alignment, uniformity and effective rank of *features* (N, d), L2-normalised first.

    *labels* (N,). Uniformity and effective rank are those of the first COMPARED images, so these should be a fair
    sample of all.
    """
    normalised = functional.normalize(features.double(), dim=1)
    return {
        "silhouette": silhouette(normalised, labels),
        "within_between_ratio": within_between_ratio(normalised, labels),
        "alignment": alignment(normalised, labels),
        "uniformity": uniformity(normalised[:COMPARED]),
        "effective_rank": effective_rank(normalised[:COMPARED]),
    }


def silhouette(normalised: Tensor, labels: Tensor) -> float | None:
    """Mean silhouette in [-1, 1] by cosine distance, higher is better clustered (Rousseeuw 1987).

    An image that is the only one of its class counts as 0, as there. Undefined unless there are two classes, one of
    them with two images.
    """
    classes = _classes(normalised, labels)
    count = len(classes.sizes)
    if count < 2 or count == len(labels):
        return None
    # Cosine distances to a class add up to a product with its sum, so no distance between two images is ever needed.
    distances = classes.sizes - normalised @ (classes.means * classes.sizes[:, None]).T
    members = functional.one_hot(classes.own, count).bool()
    to_itself = 1 - normalised.square().sum(dim=1)
    inside = (distances[members] - to_itself) / (classes.sizes[classes.own] - 1).clamp(min=1)
    outside = (distances / classes.sizes).masked_fill(members, math.inf).amin(dim=1)
    # Between equal features there is rounding, which is no distance.
    inside, outside = (d.where(d > len(labels) * EPSILON, 0) for d in (inside, outside))
    widths = ((outside - inside) / torch.maximum(inside, outside)).nan_to_num(nan=0)
    return _defined(widths.where(classes.sizes[classes.own] > 1, 0).mean())


def within_between_ratio(features: Tensor, labels: Tensor) -> float | None:
    """tr(Σ_W) / tr(Σ_B), at least 0, lower is better clustered (Fukunaga 1990, section 10.2).

    Every class weighs the same. Undefined where all class means coincide.
    """
    classes = _classes(features, labels)
    within = classes.shares @ _squared_deviations(features, classes)
    return _defined(within / classes.centred.square().sum(dim=1).mean()) if classes.apart else None


def alignment(normalised: Tensor, labels: Tensor) -> float | None:
    """Mean of ‖x - y‖² in [0, 4], lower is better (Wang and Isola 2020, section 4.1.1, α = 2).

    The positive pairs are all pairs of two images of one class: there they are two views of one image, which only some
    objectives train on. Undefined where no class has two images.
    """
    classes = _classes(normalised, labels)
    # The squared distances of all ordered pairs of n points add up to 2 n times those from their mean.
    total = 2 * classes.sizes[classes.own] @ _squared_deviations(normalised, classes)
    return _defined(total / (classes.sizes * (classes.sizes - 1)).sum())


def uniformity(normalised: Tensor) -> float | None:
    """log of the mean of exp(-2 ‖x - y‖²) in [-8, 0], lower is better (Wang and Isola 2020, section 4.1.2, t = 2).

    Over all pairs of two images, whatever their class. Undefined of fewer than two images.
    """
    count = len(normalised)
    if count < 2:
        return None
    squares = normalised.square().sum(dim=1)
    rows = []
    for chunk, own in zip(normalised.split(CHUNK), squares.split(CHUNK), strict=True):
        distances = (own[:, None] + squares - 2 * chunk @ normalised.T).clamp(min=0)
        rows.append(torch.exp(-2 * distances).sum(dim=1))
    # Each image has met itself too, at distance 0.
    return _defined((torch.cat(rows) - 1).mean().log() - math.log(count - 1))


def effective_rank(features: Tensor) -> float | None:
    """exp(entropy of the singular values' shares), from 1 to min(N - 1, d) (Roy and Vetterli 2007, definition 1).

    The mean is taken off first: features after a ReLU have a large one, which says nothing of how they vary. Undefined
    where all features are equal.
    """
    centred = features.double() - features.double().mean(dim=0)
    strengths = torch.linalg.svdvals(centred)
    if strengths[0] <= _rounding(features):
        return None
    return _defined(torch.special.entr(strengths / strengths.sum()).sum().exp())


def neural_collapse(features: Tensor, labels: Tensor, weight: Tensor, predictions: Tensor) -> Values:
    """NC1 to NC4 (Papyan, Han and Donoho 2020), all at least 0, lower is closer to collapse; see `measures`.

    *features* (N, d) are those that the classifier with *weight* (K, d) and *predictions* (N,) reads. Means and
    standard deviations are over classes, each of which weighs the same (theirs have equally many images), so the global
    mean is that of the class means. Classes without images are left out. Undefined, all of them, where there is one
    class or all class means coincide.
    """
    classes = _classes(features, labels)
    if not classes.apart:
        return dict.fromkeys(("nc1", "nc2_equinorm", "nc2_equiangularity", "nc2_maximal_angle", "nc3", "nc4"))
    count, centred = len(classes.sizes), classes.centred
    norms = centred.norm(dim=1)
    above = torch.ones(count, count, dtype=torch.bool, device=centred.device).triu(1)
    cosines = (centred @ centred.T / torch.outer(norms, norms))[above]
    weight = weight[classes.present].double()
    return {
        # Σ_W is never made: Σ_B⁺ has no more than K - 1 directions, and only along these do deviations count.
        "nc1": _defined(classes.shares @ _squared_deviations(features, classes, _whitening(features, classes))),
        "nc2_equinorm": _defined(norms.std(correction=0) / norms.mean()),
        "nc2_equiangularity": _defined(cosines.std(correction=0)),
        "nc2_maximal_angle": _defined((cosines + 1 / (count - 1)).abs().mean()),
        # As it is defined; their figure 5 plots its square.
        "nc3": _defined((weight / weight.norm() - centred / centred.norm()).norm()),
        "nc4": _defined((_nearest_mean(features, classes) != predictions).double().mean()),
    }


class _Classes(NamedTuple):
    """The K classes that have images, as float64."""

    present: Tensor  # (K,) int64: their labels
    own: Tensor  # (N,) int64: each image's class, a position in `present`
    sizes: Tensor  # (K,)
    shares: Tensor  # (N,) each image's weight in a mean in which classes weigh the same
    means: Tensor  # (K, d)
    centred: Tensor  # (K, d) the means, less the mean of them
    apart: bool  # whether the means differ by more than rounding


def _classes(features: Tensor, labels: Tensor) -> _Classes:
    present, own = labels.unique(return_inverse=True)
    count = len(present)
    sums = torch.zeros(count, features.shape[1], dtype=torch.float64, device=features.device)
    for chunk, of in zip(features.split(CHUNK), own.split(CHUNK), strict=True):
        sums += functional.one_hot(of, count).double().T @ chunk.double()
    sizes = own.bincount(minlength=count).double()
    means = sums / sizes[:, None]
    centred = means - means.mean(dim=0)
    apart = bool(centred.norm() > _rounding(features))
    return _Classes(present, own, sizes, 1 / (count * sizes[own]), means, centred, apart)


def _rounding(features: Tensor) -> float:
    """What the norm of something that should be zero may be once a mean of *features* was taken off in float64."""
    return len(features) * EPSILON * float(torch.linalg.vector_norm(features, dtype=torch.float64))


def _squared_deviations(features: Tensor, classes: _Classes, directions: Tensor | None = None) -> Tensor:
    """Squared distance (N,) of each image from its class's mean, or of their products with *directions* (d, ·)."""
    squares = []
    for chunk, own in zip(features.split(CHUNK), classes.own.split(CHUNK), strict=True):
        away = chunk.double() - classes.means[own]
        squares.append((away if directions is None else away @ directions).square().sum(dim=1))
    return torch.cat(squares)


def _whitening(features: Tensor, classes: _Classes) -> Tensor:
    """Directions B (d, ≤ K - 1) with B Bᵀ = Σ_B⁺ / K, from the singular values and vectors of the centred means."""
    _, strengths, directions = torch.linalg.svd(classes.centred, full_matrices=False)
    kept = strengths > _rounding(features)
    return directions[kept].T / strengths[kept]


def _nearest_mean(features: Tensor, classes: _Classes) -> Tensor:
    """The label (N,) of the class whose mean is nearest, Euclidean."""
    halves = classes.means.square().sum(dim=1) / 2
    chunks = [(chunk.double() @ classes.means.T - halves).argmax(dim=1) for chunk in features.split(CHUNK)]
    return classes.present[torch.cat(chunks)]


def _defined(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
