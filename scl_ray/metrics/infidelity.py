"""Infidelity: how far the attributions are from predicting what a perturbation does to the score."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from scl_ray.attribution import Batch
from scl_ray.attribution.registry import PRECISION, PROTOCOL, positive_integer
from scl_ray.metrics.metric import Metric
from scl_ray.metrics.perturbed import ZERO_FIRST, answers, patch_count, patches, replacing, sums, unperturbed
from scl_ray.metrics.removal import BASELINES


class Drops(NamedTuple):
    """Of every perturbation, both (N,P) float64: the drop of the class's score, and what the attributions predict."""

    actual: Tensor
    predicted: Tensor


def take_patches(
    batch: Batch, maps: Mapping[str, Tensor], spec: str, *, patch_size: int | None, baseline: str, precision: str,
    protocol: str,
) -> dict[str, Drops]:  # fmt: skip
    """Set squares of the image to the *baseline*: each by itself, or as ``published`` one after the other until none is
    left. The squares depend on no map, so one set of passes serves all methods.
    """
    groups = patches(batch.images.shape[2:], patch_size).to(batch.images.device)
    count = patch_count(batch.images.shape[2:], patch_size)
    replaced, accumulating = replacing(batch, baseline), protocol == "published"

    def perturbed(images: Tensor, numbers: Tensor) -> Tensor:
        taken = groups <= numbers[:, None] if accumulating else groups == numbers[:, None]
        return replaced(images, taken)

    actual = unperturbed(batch, precision).score - answers(batch, count, perturbed, precision).score
    every = groups.expand(len(batch.images), -1)
    if not accumulating:
        return {method: Drops(actual, sums(attribution, every)) for method, attribution in maps.items()}
    # What the perturbation subtracts from a pixel, summed over the channels, which share one attribution.
    change = (batch.images - BASELINES[baseline](batch)).double().sum(1)
    return {method: Drops(actual, sums(found * change, every).cumsum(1)) for method, found in maps.items()}


def infidelity(batch: Batch, maps: Tensor, passed: Drops, *, protocol: str, **parameters: Any) -> Tensor:
    """Mean squared difference, over squares taken away, between the drop of the class's score (the logit) and the one
    that the attributions predict, at least 0; lower is more faithful.

    ``corrected``: every square is taken away by itself, and predicts the sum of its attributions, each map times the
    one number that makes the difference least (as the paper's own code has it, and Captum), so that a map's scale does
    not matter. ``published`` is Quantus' definition: squares stay away when the next one goes, and maps as they are are
    multiplied by the change of the pixels, which only suits gradients. Quantus repeats these passes n_perturb_samples
    times, with the same result, and its baseline is the minimum; here it is by default the zero of the normalised
    space, from which integrated gradients and their like measure.

    Yeh et al., On the (In)fidelity and Sensitivity of Explanations, NeurIPS 2019, definition 2.1.
    """
    actual, predicted = passed
    if protocol == "corrected":
        scale = (predicted * actual).sum(1, keepdim=True) / predicted.square().sum(1, keepdim=True)
        predicted = scale * predicted
    return (predicted - actual).square().mean(1)


def patches_cost(methods: list[str], image_size: int, parameters: Mapping[str, Any]) -> int:
    """Forward passes an image takes; the image itself has been passed, but in float32."""
    squares = patch_count((image_size, image_size), parameters["patch_size"])
    return squares + (parameters["precision"] != "float32")


METRICS = {
    "infidelity": Metric(
        infidelity,
        passes=take_patches,
        cost=patches_cost,
        parameters={
            "protocol": PROTOCOL,
            "patch_size": positive_integer(None),
            "baseline": ZERO_FIRST,
            "precision": PRECISION,
        },
        facet="faithfulness",
        direction="lower",
        range=(0, float("inf")),
        citation="Yeh et al., NeurIPS 2019",
    ),
}
