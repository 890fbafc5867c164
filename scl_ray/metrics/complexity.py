"""How few pixels an attribution map rests on, and how few are enough for the network."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scl_ray.attribution import Batch
from scl_ray.attribution.registry import PRECISION, PROTOCOL, positive_integer, positive_number
from scl_ray.metrics.metric import Metric
from scl_ray.metrics.perturbed import answers, unperturbed
from scl_ray.metrics.ranking import most_important_first


def complexity(batch: Batch, maps: Tensor, passed: None, **parameters: Any) -> Tensor:
    """Shannon entropy in nats of the pixels' shares of the map's total magnitude, in [0, ln(H*W)]; lower is simpler.

    Bhatt et al., Evaluating and Aggregating Feature-based Model Explanations, IJCAI 2020.
    """
    magnitudes = maps.flatten(1).double().abs()
    return torch.special.entr(magnitudes / magnitudes.sum(1, keepdim=True)).sum(1)


def sparseness(batch: Batch, maps: Tensor, passed: None, **parameters: Any) -> Tensor:
    """Gini index of the map's magnitudes, in [0,1); higher is sparser.

    Chalasani et al., Concise Explanations of Neural Networks using Adversarial Training, ICML 2020.
    """
    magnitudes = maps.flatten(1).double().abs().sort(1).values
    size = magnitudes.shape[1]
    ranks = torch.arange(1, size + 1, device=maps.device, dtype=torch.float64)
    return ((2 * ranks - size - 1) * magnitudes).sum(1) / (size * magnitudes.sum(1))


def keep_pixels(
    batch: Batch, maps: Mapping[str, Tensor], spec: str, *, features_per_step: int | None, samples: int,
    precision: str, protocol: str,
) -> dict[str, Tensor]:  # fmt: skip
    """The loss (N,steps) float64 of keeping only the pixels of largest magnitude, *features_per_step* more every step.

    The loss is the mean squared change of the class's probability when all other pixels take one grey level that is
    uniform on the pixels' range, [0,1] (``published``: in the normalised space), by the midpoint rule on *samples*
    levels, as `monotonicity_correlation` of the same paper has it. The last step keeps all pixels: its loss is 0.
    """
    size, step_pixels, steps = _steps(batch.images.shape[-2], batch.images.shape[-1], features_per_step)
    levels = (torch.arange(samples, device=batch.images.device) + 0.5).view(-1, 1, 1, 1) / samples
    if protocol == "corrected":
        levels = batch.from_pixels(levels)
    before = unperturbed(batch, precision).probability
    nothing = torch.zeros(len(batch.images), 1, dtype=torch.float64, device=before.device)
    loss = {}
    for method, attribution in maps.items():
        order = most_important_first(attribution.abs(), protocol)
        at_step = torch.arange(size, device=order.device) // step_pixels
        first = torch.empty_like(order).scatter_(1, order, at_step.expand_as(order))

        def perturbed(images: Tensor, numbers: Tensor, first: Tensor = first) -> Tensor:
            kept = (first[images] <= (numbers // samples)[:, None]).view(-1, 1, *batch.images.shape[2:])
            return torch.where(kept, batch.images[images], levels[numbers % samples])

        if steps > 1:
            after = answers(batch, (steps - 1) * samples, perturbed, precision).probability
            changed = (after - before).square().unflatten(1, (-1, samples)).mean(2)
        loss[method] = torch.cat([changed, nothing], 1) if steps > 1 else nothing
    return loss


def keeping_cost(methods: list[str], image_size: int, parameters: Mapping[str, Any]) -> int:
    """Forward passes an image takes."""
    steps = _steps(image_size, image_size, parameters["features_per_step"])[2]
    # The image itself has been passed, but in float32.
    return len(methods) * int(parameters["samples"]) * (steps - 1) + (parameters["precision"] != "float32")


def effective_complexity(
    batch: Batch, maps: Tensor, loss: Tensor, *, tolerance: float, features_per_step: int | None, **parameters: Any
) -> Tensor:
    """The fewest pixels, in whole steps, that are enough for the network, from 1 to H*W; lower is simpler.

    Kept alone, in the order of the map's magnitudes, they change the class's probability by less than *tolerance* in
    mean square (`keep_pixels`).

    This is the paper's definition, with the squared error as its loss. Quantus counts the magnitudes above a threshold
    instead and runs no network; of a dense map that is the number of its pixels. ``quantus:EffectiveComplexity`` gives
    it. Nguyen & Martínez, On Quantitative Aspects of Model Interpretability, arXiv 2007.07584, 2020.
    """
    size, step_pixels, _ = _steps(maps.shape[-2], maps.shape[-1], features_per_step)
    first = (loss < tolerance).double().argmax(1)
    return ((first + 1) * step_pixels).clamp(max=size)


def _steps(height: int, width: int, features_per_step: int | None) -> tuple[int, int, int]:
    """Pixels of the image, pixels a step (default: the image's width), steps."""
    step_pixels = min(features_per_step or width, height * width)
    return height * width, step_pixels, -(-height * width // step_pixels)


METRICS = {
    "complexity": Metric(
        complexity,
        facet="complexity",
        direction="lower",
        range=(0, float("inf")),
        citation="Bhatt et al., IJCAI 2020",
    ),
    "sparseness": Metric(
        sparseness,
        facet="sparseness",
        direction="higher",
        range=(0, 1),
        citation="Chalasani et al., ICML 2020",
    ),
    "effective_complexity": Metric(
        effective_complexity,
        passes=keep_pixels,
        after_passes=frozenset({"tolerance"}),
        cost=keeping_cost,
        parameters={
            "protocol": PROTOCOL,
            "precision": PRECISION,
            "tolerance": positive_number(0.01),
            "features_per_step": positive_integer(None),
            "samples": positive_integer(10),
        },
        facet="complexity",
        direction="lower",
        range=(1, float("inf")),
        citation="Nguyen & Martínez, arXiv 2007.07584, 2020",
    ),
}
