"""Faithfulness by pixel flipping: take away the most important pixels first and watch the class go.

The curve of one method serves every metric that reads it: the class's probability and whether it is still predicted.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scl_ray.attribution import Batch
from scl_ray.attribution.registry import PRECISION, PROTOCOL, one_of, positive_integer
from scl_ray.metrics.metric import Metric
from scl_ray.metrics.ranking import most_important_first, positions
from scl_ray.metrics.removal import BASELINES, Answers, joined, of_images, replace_in_order


def flip_pixels(
    batch: Batch,
    maps: Mapping[str, Tensor],
    spec: str,
    *,
    features_per_step: int | None,
    baseline: str,
    order: str,
    precision: str,
    protocol: str,
) -> dict[str, Answers]:
    """Flip the pixels of each image in the *order* of each method's map; answers (N,1+steps), the first of the image.

    Every step sets *features_per_step* more whole pixels (default: the image's width) to the *baseline*: the scalar
    minimum or mean over all channels of the normalised image, the zero of the normalised space (the mean image), the
    blurred image, or noise in the image's range (`scl_ray.metrics.removal.BASELINES`). The last step leaves no pixel.
    """
    flipped_at, steps = _schedule(batch, maps, features_per_step, order, protocol)
    found = replace_in_order(batch, flipped_at, steps, batch.images, BASELINES[baseline](batch), precision)
    unperturbed = of_images(batch)
    return {method: joined(unperturbed, answers) for method, answers in found.items()}


def insert_pixels(
    batch: Batch,
    maps: Mapping[str, Tensor],
    spec: str,
    *,
    features_per_step: int | None,
    baseline: str,
    precision: str,
    protocol: str,
) -> dict[str, Answers]:
    """Bring the pixels of each image back into its *baseline*, the most important first; answers (N,1+steps), the
    first of the baseline, the last of the image itself. *features_per_step*, *baseline*: as in `flip_pixels`.
    """
    inserted_at, steps = _schedule(batch, maps, features_per_step, "most_relevant", protocol)
    later = {method: at + 1 for method, at in inserted_at.items()}  # step 0 is the baseline
    found = replace_in_order(batch, later, steps, BASELINES[baseline](batch), batch.images, precision)
    unperturbed = of_images(batch)
    return {method: joined(answers, unperturbed) for method, answers in found.items()}


def flipping_cost(methods: list[str], image_size: int, parameters: Mapping[str, Any]) -> int:
    """Forward passes an image takes, beyond the one that is there."""
    return len(methods) * _steps((image_size, image_size), parameters["features_per_step"])[1]


def pixel_flipping_auc(batch: Batch, maps: Tensor, flipped: Answers, **parameters: Any) -> Tensor:
    """Area under the class's probability over the steps, in [0,1]; lower is more faithful, and higher with the least
    relevant first.

    The trapezoid over the steps / (steps-1); the unperturbed image is not a step. It depends on the network's
    calibration as well as on the map: compare calibrated networks, and read `prediction_flip_auc` beside it.
    *probability*: ``calibrated`` is the model's own; ``raw`` is before ``model.temperature``, where it has one, divided
    the scores.

    Bach et al., On Pixel-Wise Explanations for Non-Linear Classifier Decisions by LRP, PLOS ONE 10(7), 2015.
    """
    return _area(probability_at_steps(flipped, **parameters))


def prediction_flip_auc(batch: Batch, maps: Tensor, flipped: Answers, **parameters: Any) -> Tensor:
    """Share of the steps at which the class explained is still the predicted one, in [0,1]; lower is more faithful,
    and higher with the least relevant first.

    No rescaling of the logits changes it. After Bach et al., PLOS ONE 10(7), 2015.
    """
    return kept_at_steps(flipped).mean(1)


def deletion_auc(batch: Batch, maps: Tensor, flipped: Answers, **parameters: Any) -> Tensor:
    """Area under the class's probability while pixels are taken away, in [0,1]; lower is more faithful, and higher with
    the least relevant first.

    The trapezoid over the unperturbed image and the steps / steps. Petsiuk et al. take the mean image as the baseline.

    Petsiuk et al., RISE: Randomized Input Sampling for Explanation of Black-box Models, BMVC 2018, section 4.2.
    """
    return _area(class_probability(flipped, **parameters))


def insertion_auc(batch: Batch, maps: Tensor, inserted: Answers, **parameters: Any) -> Tensor:
    """Area under the class's probability while pixels are brought into the blurred image, in [0,1]; higher is more
    faithful.

    The trapezoid over the baseline and the steps / steps; the last step is the unperturbed image. Petsiuk et al. start
    from the blurred image, since a sharp border of the inserted part is evidence of its own.

    Petsiuk et al., RISE: Randomized Input Sampling for Explanation of Black-box Models, BMVC 2018, section 4.2.
    """
    return _area(class_probability(inserted, **parameters))


def class_probability(answers: Answers, *, probability: str, **parameters: Any) -> Tensor:
    """The class's probability at all points, the unperturbed image among them."""
    return answers.raw if probability == "raw" else answers.calibrated


def probability_at_steps(flipped: Answers, **parameters: Any) -> Tensor:
    """The class's probability after each step."""
    return class_probability(flipped, **parameters)[:, 1:]


def kept_at_steps(flipped: Answers, **parameters: Any) -> Tensor:
    """1 where the class explained is still predicted, after each step."""
    return flipped.kept[:, 1:]


def _schedule(
    batch: Batch, maps: Mapping[str, Tensor], features_per_step: int | None, order: str, protocol: str
) -> tuple[dict[str, Tensor], int]:
    """The step (N,H*W) from 0 at which each pixel's turn comes, by each method's map, and the number of steps."""
    step_pixels, steps = _steps(batch.images.shape[-2:], features_per_step)
    sign = -1 if order == "least_relevant" else 1
    ranked = (positions(most_important_first(sign * attribution, protocol)) for attribution in maps.values())
    # A table of all pixels of all images and methods: half the memory of int64.
    return {method: rank.int() // step_pixels for method, rank in zip(maps, ranked, strict=True)}, steps


def _steps(shape: tuple[int, ...], features_per_step: int | None) -> tuple[int, int]:
    """Pixels a step, steps."""
    height, width = shape
    step_pixels = features_per_step or width
    steps = -(-height * width // step_pixels)
    if steps < 2:
        raise ValueError(f"features_per_step={step_pixels} flips all {height * width} pixels at once; take fewer")
    return step_pixels, steps


def _area(curve: Tensor) -> Tensor:
    """The trapezoid under a curve (N,points), by its width: a mean."""
    return torch.trapezoid(curve.double(), dim=1) / (curve.shape[1] - 1)


def _parameters(baseline: str) -> dict[str, Any]:
    return {
        "protocol": PROTOCOL,
        "features_per_step": positive_integer(None),
        "baseline": one_of(baseline, *(name for name in BASELINES if name != baseline)),
        "precision": PRECISION,
    }


_ORDER = {"order": one_of("most_relevant", "least_relevant")}
_PROBABILITY = {"probability": one_of("calibrated", "raw")}

METRICS = {
    "pixel_flipping_auc": Metric(
        pixel_flipping_auc,
        passes=flip_pixels,
        after_passes=frozenset(_PROBABILITY),
        cost=flipping_cost,
        curve=probability_at_steps,
        parameters=_parameters("minimum") | _ORDER | _PROBABILITY,
        facet="faithfulness",
        direction="lower",
        reversed_by=("order", "least_relevant"),
        range=(0, 1),
        citation="Bach et al., PLOS ONE 2015",
    ),
    "prediction_flip_auc": Metric(
        prediction_flip_auc,
        passes=flip_pixels,
        cost=flipping_cost,
        curve=kept_at_steps,
        parameters=_parameters("minimum") | _ORDER,
        facet="faithfulness",
        direction="lower",
        reversed_by=("order", "least_relevant"),
        range=(0, 1),
        citation="after Bach et al., PLOS ONE 2015",
    ),
    "deletion_auc": Metric(
        deletion_auc,
        passes=flip_pixels,
        after_passes=frozenset(_PROBABILITY),
        cost=flipping_cost,
        curve=class_probability,
        parameters=_parameters("zero") | _ORDER | _PROBABILITY,
        facet="faithfulness",
        direction="lower",
        reversed_by=("order", "least_relevant"),
        range=(0, 1),
        citation="Petsiuk et al., BMVC 2018",
    ),
    "insertion_auc": Metric(
        insertion_auc,
        passes=insert_pixels,
        after_passes=frozenset(_PROBABILITY),
        cost=flipping_cost,
        curve=class_probability,
        parameters=_parameters("blur") | _PROBABILITY,
        facet="faithfulness",
        direction="higher",
        range=(0, 1),
        citation="Petsiuk et al., BMVC 2018",
    ),
}
