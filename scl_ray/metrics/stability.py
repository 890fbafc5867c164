"""Continuity: how much a map changes when the image changes a little.

All metrics look at the same perturbed copies of an image: the copies are explained once, by all methods together, one
copy of every image at a time, and only the distances below are kept of each.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from scl_ray import attribution
from scl_ray.attribution import Batch, Forward
from scl_ray.attribution.question import embedding
from scl_ray.attribution.registry import PROTOCOL, positive_integer, positive_number
from scl_ray.metrics.metric import Metric


class Perturbed(NamedTuple):
    """How far each perturbed copy is from its image, in Euclidean distances; (N,samples) float64.

    images: between the normalised images. image_change: the norm of their relative change, value by value.
    representation_change: the same of the features that class scores are read from; nan where no module reads any.
    scores: between the class scores. kept: 1 where the predicted class is the same.
    maps: between the two maps, over the norm of the image's own. scaled_maps: between the maps, each over its largest
      magnitude. map_change: the norm of their relative change, pixel by pixel.
    """

    images: Tensor
    image_change: Tensor
    representation_change: Tensor
    scores: Tensor
    kept: Tensor
    maps: Tensor
    scaled_maps: Tensor
    map_change: Tensor


def explain_perturbed(
    batch: Batch, maps: Mapping[str, Tensor], spec: str, *, samples: int, radius: float, protocol: str
) -> dict[str, Perturbed]:
    """Explain *samples* perturbed copies of each image by all methods, for the image's class, and measure distances.

    The noise is uniform in [-radius, radius] at each channel of each pixel: the ball of the maximum norm. ``corrected``
    adds it in pixel space and clamps to [0,1]; ``published`` adds it to the normalised image, as Quantus does, whose
    defaults differ from metric to metric (Gaussian noise for the Lipschitz estimate, positive noise for the relative
    stabilities), where here all share one neighbourhood.
    """
    # One stream for all metrics and parameters: no value depends on the metric that asks first.
    streams = batch.generators("perturbed")
    reader = _reader(batch)
    scores, features, _ = _run(batch, [], reader)
    found: dict[str, list[tuple[Tensor, ...]]] = {method: [] for method in maps}
    for _ in range(samples):
        images = _perturb(batch, streams, radius, protocol)
        moved = batch.but(images=images)
        moved_scores, moved_features, passed = _run(moved, list(maps), reader)
        shared = (
            _norm(images - batch.images),
            _relative_change(batch.images, images, protocol),
            _relative_change(features, moved_features, protocol),
            _norm(moved_scores - scores),
            (moved_scores.argmax(1) == scores.argmax(1)).double(),
        )
        for method, changed in attribution.explain_many(moved.but(passed=passed), maps).items():
            original = maps[method]
            found[method].append(
                (
                    *shared,
                    _norm(changed - original) / _norm(original),
                    _norm(_scaled(changed) - _scaled(original)),
                    _relative_change(original, changed, protocol),
                )
            )
    return {
        method: Perturbed(*(torch.stack(part, 1) for part in zip(*of, strict=True))) for method, of in found.items()
    }


def perturbed_cost(methods: list[str], image_size: int, parameters: Mapping[str, Any]) -> int:
    """Forward passes an image takes: one of its own, and an explanation of each copy."""
    passes = attribution.shared_passes(methods) + attribution.cost(methods, image_size, shared=True)
    return 1 + int(parameters["samples"]) * passes


def local_lipschitz_estimate(batch: Batch, maps: Tensor, perturbed: Perturbed, **parameters: Any) -> Tensor:
    """Largest distance of the maps over that of the normalised images, at least 0; lower is more continuous.

    Each map is scaled by its largest magnitude, so that networks with large scores are not the worse for it. Quantus
    does so by the largest of all maps of a batch; given one image, it agrees. Max-taking over samples makes it a lower
    bound of the constant.

    Alvarez-Melis & Jaakkola, On the Robustness of Interpretability Methods, arXiv 1806.08049, 2018.
    """
    return (perturbed.scaled_maps / perturbed.images).amax(1)


def max_sensitivity(batch: Batch, maps: Tensor, perturbed: Perturbed, **parameters: Any) -> Tensor:
    """Largest distance of a perturbed map over the norm of the map, at least 0; lower is more continuous.

    Yeh et al., On the (In)fidelity and Sensitivity of Explanations, NeurIPS 2019; relative to the map's norm, as
    Captum and Quantus compute it.
    """
    return perturbed.maps.amax(1)


def avg_sensitivity(batch: Batch, maps: Tensor, perturbed: Perturbed, **parameters: Any) -> Tensor:
    """Mean distance of a perturbed map over the norm of the map, at least 0; lower is more continuous.

    Yeh et al., On the (In)fidelity and Sensitivity of Explanations, NeurIPS 2019; Bhatt et al., IJCAI 2020.
    """
    return perturbed.maps.mean(1)


def relative_input_stability(
    batch: Batch, maps: Tensor, perturbed: Perturbed, *, protocol: str, **parameters: Any
) -> Tensor:
    """Largest relative change of the map over that of the normalised image, at least 0; lower is more continuous.

    Only copies with the image's own prediction count; ``published`` gives no value as soon as one has another, as
    Quantus does. A relative change is taken value by value. Maps and features hold zeros, and values next to zero that
    are rounding errors: ``corrected`` divides by at least 1 % of the largest magnitude, ``published``, as Quantus, by
    1e-6 in place of an exact zero.

    Agarwal et al., Rethinking Stability for Attribution-based Explanations, arXiv 2203.06877, 2022.
    """
    return _worst(perturbed.map_change / perturbed.image_change, perturbed.kept, protocol)


def relative_output_stability(
    batch: Batch, maps: Tensor, perturbed: Perturbed, *, protocol: str, **parameters: Any
) -> Tensor:
    """Largest relative change of the map over the distance of the class scores, at least 0; lower is more continuous.

    Copies and relative changes as `relative_input_stability` takes them. Agarwal et al., arXiv 2203.06877, 2022.
    """
    return _worst(perturbed.map_change / perturbed.scores, perturbed.kept, protocol)


def relative_representation_stability(
    batch: Batch, maps: Tensor, perturbed: Perturbed, *, protocol: str, **parameters: Any
) -> Tensor:
    """Largest relative change of the map over that of the features that class scores are read from, at least 0; lower
    is more continuous.

    Copies and relative changes as `relative_input_stability` takes them; undefined for a network without such features.
    Agarwal et al., arXiv 2203.06877, 2022.
    """
    return _worst(perturbed.map_change / perturbed.representation_change, perturbed.kept, protocol)


def _worst(ratios: Tensor, kept: Tensor, protocol: str) -> Tensor:
    # Infinite where none is left, and so undefined.
    return ratios.masked_fill(kept == 0, torch.nan if protocol == "published" else -torch.inf).amax(1)


def _perturb(batch: Batch, streams: Sequence[np.random.Generator], radius: float, protocol: str) -> Tensor:
    drawn = np.stack([stream.random(batch.images.shape[1:], dtype=np.float32) for stream in streams])
    noise = radius * (2 * torch.from_numpy(drawn).to(batch.images.device) - 1)
    if protocol == "published":
        return batch.images + noise
    return batch.from_pixels((batch.to_pixels(batch.images) + noise).clamp(0, 1))


def _run(batch: Batch, methods: list[str], reader: nn.Module | None) -> tuple[Tensor, Tensor, dict[str, Forward]]:
    """Class scores (N,K), the features (N,d) that *reader* reads, and the forward passes that *methods* share."""
    read: list[Tensor] = []
    handle = (
        reader.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].detach())) if reader else None
    )
    try:
        passed = attribution.shared_forward(batch, methods)
    finally:
        if handle is not None:
            handle.remove()
    scores = passed["class_score"].scores.detach()
    return scores, read[0] if read else torch.full_like(scores, torch.nan), passed


def _reader(batch: Batch) -> nn.Module | None:
    """The module whose input is the network's embedding, so that one pass gives it beside the class scores."""
    if "reader" not in batch.kept:
        batch.kept["reader"] = _find_reader(batch)
    reader: nn.Module | None = batch.kept["reader"]
    return reader


def _find_reader(batch: Batch) -> nn.Module | None:
    inputs: list[tuple[nn.Module, Tensor]] = []

    def watch(module: nn.Module, given: tuple[Any, ...]) -> None:
        if given and isinstance(given[0], Tensor):
            inputs.append((module, given[0]))

    try:
        network = embedding(batch)
    except ValueError:  # a network without a linear layer, which all metrics but one can do without
        return None
    handles = [module.register_forward_pre_hook(watch) for module in batch.model.modules()]
    try:
        with torch.no_grad():
            features = network(batch.images[:1])
            inputs.clear()
            batch.model(batch.images[:1])
    finally:
        for handle in handles:
            handle.remove()
    return next(
        (module for module, given in inputs if given.shape == features.shape and torch.allclose(given, features)), None
    )


def _norm(values: Tensor) -> Tensor:
    return values.double().flatten(1).norm(dim=1)


def _scaled(maps: Tensor) -> Tensor:
    """Each map over its largest magnitude; a zero map stays as it is."""
    largest = maps.abs().amax((1, 2), keepdim=True)
    return maps / torch.where(largest > 0, largest, 1)


def _relative_change(original: Tensor, changed: Tensor, protocol: str) -> Tensor:
    """Norm (N,) of the change of each value, over the value."""
    before, after = original.double().flatten(1), changed.double().flatten(1)
    if protocol == "published":
        divisor = torch.where(before == 0, 1e-6, before)
    else:
        divisor = torch.maximum(before.abs(), 0.01 * before.abs().amax(1, keepdim=True))
    return _norm((after - before) / divisor)


_PARAMETERS = {"protocol": PROTOCOL, "samples": positive_integer(10), "radius": positive_number(0.1)}


def _metric(function: Callable[..., Tensor], citation: str) -> Metric:
    return Metric(
        function,
        passes=explain_perturbed,
        cost=perturbed_cost,
        needs=frozenset({"re-explanation"}),
        parameters=_PARAMETERS,
        facet="continuity",
        direction="lower",
        range=(0, float("inf")),
        citation=citation,
    )


METRICS = {
    "local_lipschitz_estimate": _metric(local_lipschitz_estimate, "Alvarez-Melis & Jaakkola, arXiv 1806.08049, 2018"),
    "max_sensitivity": _metric(max_sensitivity, "Yeh et al., NeurIPS 2019"),
    "avg_sensitivity": _metric(avg_sensitivity, "Yeh et al., NeurIPS 2019"),
    "relative_input_stability": _metric(relative_input_stability, "Agarwal et al., arXiv 2203.06877, 2022"),
    "relative_output_stability": _metric(relative_output_stability, "Agarwal et al., arXiv 2203.06877, 2022"),
    "relative_representation_stability": _metric(
        relative_representation_stability, "Agarwal et al., arXiv 2203.06877, 2022"
    ),
}
