"""Faithfulness by pixel flipping: take away the most important pixels first and watch the class go.

The curve of one method serves every metric that reads it: the class's probability and whether it is still predicted.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scl_ray.attribution import Batch
from scl_ray.attribution.registry import PROTOCOL, one_of, positive_integer
from scl_ray.metrics.metric import Metric

BASELINES: dict[str, Callable[..., Tensor]] = {"minimum": torch.amin, "mean": torch.mean}


class Flipped(NamedTuple):
    """What the network says of an image after each step; both (N,steps) float32.

    probability: softmax probability of the class explained. kept: 1 where that class is still the predicted one.
    """

    probability: Tensor
    kept: Tensor


def flip_pixels(
    batch: Batch, maps: Mapping[str, Tensor], spec: str, *, features_per_step: int | None, baseline: str, protocol: str
) -> dict[str, Flipped]:
    """Flip the pixels of each image from the most to the least important, by each method's *maps*.

    Every step sets *features_per_step* more whole pixels (default: the image's width) to the image's *baseline*, a
    scalar: the minimum, or the mean, over all channels of the normalised image. The last step leaves none.
    """
    size, step_pixels, steps = _steps(batch.images.shape[-2:], features_per_step)
    baselines = BASELINES[baseline](batch.images, dim=(1, 2, 3)).view(-1, 1, 1, 1, 1)
    together = max(1, batch.at_once // len(batch.images))
    flipped = {}
    for method, attribution in maps.items():
        order = most_important_first(attribution, protocol)
        at_step = torch.arange(size, device=order.device) // step_pixels
        flipped_at = torch.empty_like(order).scatter_(1, order, at_step.expand_as(order))
        flipped_at = flipped_at.view(-1, 1, 1, *batch.images.shape[-2:])
        probability, kept = [], []
        for step in torch.arange(steps, device=order.device).split(together):
            images = torch.where(flipped_at <= step.view(1, -1, 1, 1, 1), baselines, batch.images[:, None])
            with torch.inference_mode():
                scores = batch.model(images.flatten(0, 1)).float().unflatten(0, images.shape[:2])
            targets = batch.targets.view(-1, 1, 1).expand(-1, len(step), 1)
            probability.append(scores.softmax(-1).gather(-1, targets)[..., 0])
            kept.append((scores.argmax(-1) == targets[..., 0]).float())
        flipped[method] = Flipped(torch.cat(probability, 1), torch.cat(kept, 1))
    return flipped


def flipping_cost(methods: list[str], image_size: int, parameters: Mapping[str, Any]) -> int:
    """Forward passes an image takes."""
    return len(methods) * _steps((image_size, image_size), parameters["features_per_step"])[2]


def pixel_flipping_auc(batch: Batch, maps: Tensor, flipped: Flipped, **parameters: Any) -> Tensor:
    """Area under the class's probability over the steps, in [0,1]; lower is more faithful.

    The trapezoid over the steps / (steps-1); the unperturbed image is not a step. It depends on the network's
    calibration as well as on the map: compare calibrated networks, and read `prediction_flip_auc` beside it.

    Bach et al., On Pixel-Wise Explanations for Non-Linear Classifier Decisions by LRP, PLOS ONE 10(7), 2015.
    """
    return torch.trapezoid(flipped.probability.double(), dim=1) / (flipped.probability.shape[1] - 1)


def prediction_flip_auc(batch: Batch, maps: Tensor, flipped: Flipped, **parameters: Any) -> Tensor:
    """Share of the steps at which the class explained is still the predicted one, in [0,1]; lower is more faithful.

    No rescaling of the logits changes it. After Bach et al., PLOS ONE 10(7), 2015.
    """
    return flipped.kept.mean(1)


def most_important_first(maps: Tensor, protocol: str) -> Tensor:
    """Pixel indices (N,H*W) int64 of *maps* (N,H,W) from the highest to the lowest value.

    ``corrected`` rounds to 1e-6 of the map's largest magnitude and breaks ties by index, so that rounding errors
    decide no order. ``published`` leaves ties to NumPy's unstable sort, as Quantus does.
    """
    values = maps.flatten(1)
    if protocol == "published":
        return torch.from_numpy(np.argsort(-values.cpu().numpy(), axis=1)).to(maps.device)
    largest = values.abs().amax(1, keepdim=True)
    rounded = (values.double() / torch.where(largest > 0, largest, 1)).mul(1e6).round()
    return torch.sort(-rounded, dim=1, stable=True).indices


def _steps(shape: tuple[int, ...], features_per_step: int | None) -> tuple[int, int, int]:
    """Pixels of the image, pixels a step, steps."""
    height, width = shape
    step_pixels = features_per_step or width
    steps = -(-height * width // step_pixels)
    if steps < 2:
        raise ValueError(f"features_per_step={step_pixels} flips all {height * width} pixels at once; take fewer")
    return height * width, step_pixels, steps


_PARAMETERS = {
    "protocol": PROTOCOL,
    "features_per_step": positive_integer(None),
    "baseline": one_of(*BASELINES),
}

METRICS = {
    "pixel_flipping_auc": Metric(
        pixel_flipping_auc,
        passes=flip_pixels,
        cost=flipping_cost,
        curve="probability",
        parameters=_PARAMETERS,
        facet="faithfulness",
        direction="lower",
        range=(0, 1),
        citation="Bach et al., PLOS ONE 2015",
    ),
    "prediction_flip_auc": Metric(
        prediction_flip_auc,
        passes=flip_pixels,
        cost=flipping_cost,
        curve="kept",
        parameters=_PARAMETERS,
        facet="faithfulness",
        direction="lower",
        range=(0, 1),
        citation="after Bach et al., PLOS ONE 2015",
    ),
}
