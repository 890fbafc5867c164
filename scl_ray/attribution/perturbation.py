"""Methods that remove parts of the image and watch the score.

What is removed becomes the zero of the normalised space (the mean image). The parts are square patches of whole pixels.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scl_ray.attribution.copies import masked_scores, scores
from scl_ray.attribution.method import Method
from scl_ray.attribution.question import Question
from scl_ray.attribution.registry import PROTOCOL, TARGET, positive_integer


def occlusion(question: Question, spec: str, *, patch: int | None, stride: int | None, protocol: str) -> Tensor:
    """How much the score falls without the patch around a pixel, the mean over the patches that hold it; (N,H,W),
    signed. Both protocols agree.

    patch: its side in pixels (default: an eighth of the image's shorter side). stride: pixels from one patch to the
    next (default: half a patch). The last patches end with the image. Raises ValueError for a patch that is larger than
    the image, and for a stride that leaves gaps.

    Zeiler & Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014, section 4.2; as in Captum.
    """
    rows, columns = _windows(question.images.shape[-2:], patch, stride)
    down, right = len(rows), len(columns)

    def without(image: Tensor, window: Tensor) -> Tensor:
        return ~(rows[window // right, :, None] & columns[window % right, None])

    rows, columns = rows.to(question.images.device), columns.to(question.images.device)
    falls = _scores(question)[:, None] - masked_scores(question, without, down * right)
    total = torch.einsum("nij,ih,jw->nhw", falls.view(-1, down, right), rows.float(), columns.float())
    return total / (rows.sum(0)[:, None] * columns.sum(0))


def feature_ablation(question: Question, spec: str, *, patch: int | None, protocol: str) -> Tensor:
    """How much the score falls without the patch that holds a pixel, one of a grid; (N,H,W), signed. Both protocols
    agree.

    patch: its side in pixels (default: an eighth of the image's shorter side); the last ones end with the image. Raises
    ValueError for one that is larger than the image, or all of it.

    Zeiler & Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014, section 4.2; as in Captum.
    """
    grid, features = _grid(question, patch)
    without = masked_scores(question, lambda image, feature: grid != feature.view(-1, 1, 1), features)
    falls = _scores(question)[:, None] - without
    return falls[:, grid]


def lime(question: Question, spec: str, *, patch: int | None, samples: int, protocol: str) -> Tensor:
    """Coefficients of a linear model of the score, fitted to *samples* copies of the image of which every patch of a
    grid is removed with probability 1/2; (N,H,W), signed. The protocols differ in what is drawn alone.

    Copies count by exp(-d^2/2), d their cosine distance from the image. The model is a ridge regression with a penalty
    of 1, as the authors' code has it: unlike Captum's lasso it is not blind to scores of small scale. patch: as for
    `feature_ablation`.

    Ribeiro et al., "Why Should I Trust You?": Explaining the Predictions of Any Classifier, KDD 2016, section 3.
    """
    grid, features = _grid(question, patch)
    streams = question.batch.generators(spec)
    kept = torch.from_numpy(np.stack([s.random((samples, features)) < 0.5 for s in streams])).to(grid.device)
    found = _scores_of_coalitions(question, grid, kept)
    # The cosine of the image and what is kept of it is the root of the share of its energy that is kept.
    energy = question.images.double().square().sum(1).flatten(1)
    energy = energy.new_zeros(len(energy), features).index_add_(1, grid.flatten(), energy)
    whole = energy.sum(1, keepdim=True)
    cosine = ((kept * energy[:, None]).sum(2) / torch.where(whole > 0, whole, 1)).sqrt()
    weights = (-(1 - cosine).square() / 2).exp()[..., None]
    x = _centred(kept.double(), weights)
    y = _centred(found[..., None], weights)
    penalty = torch.eye(features, dtype=x.dtype, device=x.device)
    return torch.linalg.solve(x.mT @ (weights * x) + penalty, x.mT @ (weights * y))[..., 0][:, grid]


def kernel_shap(question: Question, spec: str, *, patch: int | None, samples: int, protocol: str) -> Tensor:
    """Shapley values of the patches of a grid, by a linear model fitted to *samples* copies of the image without some
    of them; (N,H,W), signed. The protocols differ in what is drawn alone. The patches' values add up to what the score
    gains from none to all.

    Coalitions are drawn with the Shapley kernel, as in Captum, each with its complement (Covert & Lee, AISTATS 2021);
    the two constraints hold exactly instead of by large weights. patch: as for `feature_ablation`. Raises ValueError
    for fewer samples than twice the patches.

    Lundberg & Lee, A Unified Approach to Interpreting Model Predictions, NeurIPS 2017, theorem 2.
    """
    grid, features = _grid(question, patch)
    _enough(samples, features)
    size = np.arange(1, features)
    likely = 1 / (size * (features - size))
    coalitions = []
    for stream in question.batch.generators(spec):
        sizes = stream.choice(size, (-(-samples // 2), 1), p=likely / likely.sum())
        drawn = stream.random((len(sizes), features)).argsort(1).argsort(1) < sizes
        everything = np.ones((1, features), bool)
        coalitions.append(np.concatenate([everything, ~everything, np.concatenate([drawn, ~drawn])[:samples]]))
    kept = torch.from_numpy(np.stack(coalitions)).to(grid.device)
    all_, none, found = _scores_of_coalitions(question, grid, kept).split([1, 1, samples], 1)
    # The last patch's value is what the others leave of the gain.
    there = kept[:, 2:].double()
    last = there[..., -1:]
    x = there[..., :-1] - last
    y = found - none - last[..., 0] * (all_ - none)
    values = (torch.linalg.pinv(x.mT @ x, hermitian=True) @ (x.mT @ y[..., None]))[..., 0]
    values = torch.cat([values, all_ - none - values.sum(1, keepdim=True)], 1)
    return values[:, grid]


def _scores(question: Question) -> Tensor:
    """The scores (N,) of the images as they are."""
    return scores(question, question.images, torch.arange(len(question.images), device=question.images.device))


def _scores_of_coalitions(question: Question, grid: Tensor, kept: Tensor) -> Tensor:
    """Scores (N,S) float64 of the images of which only the patches *kept* (N,S,F) are there."""
    return masked_scores(question, lambda image, copy: kept[image, copy][:, grid], kept.shape[1]).double()


def _centred(values: Tensor, weights: Tensor) -> Tensor:
    """*values* (N,S,F) minus their mean over S with *weights* (N,S,1)."""
    return values - (weights * values).sum(1, keepdim=True) / weights.sum(1, keepdim=True)


def _side(shape: tuple[int, ...], patch: int | None) -> int:
    """The side of a patch in pixels."""
    side = patch or max(1, min(shape) // 8)
    if side > min(shape):
        raise ValueError(f"patch={side} is larger than the images, which are {shape[0]}x{shape[1]} pixels")
    return side


def _windows(shape: tuple[int, ...], patch: int | None, stride: int | None) -> list[Tensor]:
    """Which rows, and which columns, each row and column of patches holds: (I,H) and (J,W) bool."""
    side = _side(shape, patch)
    step = stride or max(1, side // 2)
    if step > side:
        raise ValueError(
            f"occlusion: a stride of {step} leaves gaps between patches of {side} pixels; take at most {side}"
        )
    found = []
    for length in shape:
        start = torch.arange(0, length - side + step, step)[:, None]
        pixel = torch.arange(length)
        found.append((start <= pixel) & (pixel < start + side))
    return found


def _grid(question: Question, patch: int | None) -> tuple[Tensor, int]:
    """The number of the patch that holds each pixel, (H,W) int64, and how many patches there are."""
    shape = question.images.shape[-2:]
    side, down, right = _patches(shape, patch)
    rows, columns = (torch.arange(length, device=question.images.device) // side for length in shape)
    return rows[:, None] * right + columns, down * right


def _patches(shape: tuple[int, ...], patch: int | None) -> tuple[int, int, int]:
    """Side of the patches of a grid, rows and columns of them."""
    side = _side(shape, patch)
    down, right = (-(-length // side) for length in shape)
    if down * right < 2:
        raise ValueError(f"patch={side} is all of the image, so there is nothing to compare; take fewer pixels")
    return side, down, right


def _enough(samples: int, features: int) -> None:
    if samples < 2 * features:
        raise ValueError(f"kernel_shap: {features} patches need at least {2 * features} samples, not {samples}")


def _features(image_size: int, parameters: Mapping[str, Any]) -> int:
    """Patches of a grid. Costs count them before any work starts, so what the image size forbids is refused there."""
    _, down, right = _patches((image_size, image_size), parameters["patch"])
    return down * right


def _lime_cost(parameters: Mapping[str, Any], image_size: int) -> int:
    _features(image_size, parameters)
    return int(parameters["samples"])


def _shap_cost(parameters: Mapping[str, Any], image_size: int) -> int:
    _enough(parameters["samples"], _features(image_size, parameters))
    return 2 + int(parameters["samples"])


def _occlusion_cost(parameters: Mapping[str, Any], image_size: int) -> int:
    rows, columns = _windows((image_size, image_size), parameters["patch"], parameters["stride"])
    return 1 + len(rows) * len(columns)


_PATCH = {"protocol": PROTOCOL, "target": TARGET, "patch": positive_integer(None)}

METHODS = {
    "occlusion": Method(
        occlusion,
        class_discriminative=True,
        parameters={**_PATCH, "stride": positive_integer(None)},
        citation="Zeiler & Fergus, ECCV 2014",
        cost=_occlusion_cost,
    ),
    "feature_ablation": Method(
        feature_ablation,
        class_discriminative=True,
        parameters=_PATCH,
        citation="Zeiler & Fergus, ECCV 2014",
        cost=lambda parameters, image_size: 1 + _features(image_size, parameters),
    ),
    "lime": Method(
        lime,
        class_discriminative=True,
        parameters={**_PATCH, "samples": positive_integer(256)},
        citation="Ribeiro et al., KDD 2016",
        cost=_lime_cost,
    ),
    "kernel_shap": Method(
        kernel_shap,
        class_discriminative=True,
        parameters={**_PATCH, "samples": positive_integer(512)},
        citation="Lundberg & Lee, NeurIPS 2017",
        cost=_shap_cost,
    ),
}
