"""Faithfulness by groups of pixels of like importance: does the score follow their attributions?

Every group is taken away by itself, all other pixels staying as they are. Groups are of whole pixels, in both protocols
(Quantus takes single channel values). Groups of one pixel are the same for all methods, and so are their passes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scl_ray.attribution import Batch
from scl_ray.attribution.registry import PRECISION, PROTOCOL, one_of, positive_integer
from scl_ray.metrics.correlation import pearson, spearman
from scl_ray.metrics.metric import Metric
from scl_ray.metrics.perturbed import answers, replacing, sums, unperturbed
from scl_ray.metrics.ranking import most_important_first, rounded
from scl_ray.metrics.removal import BASELINES


class Groups(NamedTuple):
    """attribution: (N,G) float64, the sum over each group. effect: (N,G) float64, what taking it away does."""

    attribution: Tensor
    effect: Tensor


def take_groups(
    batch: Batch, maps: Mapping[str, Tensor], spec: str, *, features_per_step: int | None, baseline: str,
    precision: str, protocol: str,
) -> dict[str, Groups]:  # fmt: skip
    """Set each group to the *baseline*, groups of *features_per_step* pixels (default: the image's width) from
    the most to the least important. The effect is the class's score without the group.
    """
    ordered = {method: most_important_first(attribution, protocol) for method, attribution in maps.items()}
    replaced = replacing(batch, baseline)
    found: dict[str, Groups] = {}
    for methods, groups in _grouped(ordered, batch, features_per_step):

        def perturbed(images: Tensor, numbers: Tensor, groups: Tensor = groups) -> Tensor:
            return replaced(images, groups.index_select(0, images) == numbers[:, None])

        effect = answers(batch, int(groups.max()) + 1, perturbed, precision).score
        found |= {method: Groups(sums(maps[method], groups), effect) for method in methods}
    return found


def faithfulness_estimate(batch: Batch, maps: Tensor, passed: Groups, **parameters: Any) -> Tensor:
    """Pearson's correlation, over groups of like importance, of a group's attribution with the drop of the class's
    score (the logit) without it, in [-1,1]; higher is more faithful.

    Alvarez-Melis & Jaakkola, Towards Robust Interpretability with Self-Explaining Neural Networks, NeurIPS 2018.
    """
    return pearson(passed.attribution, -passed.effect)


def redraw_groups(
    batch: Batch, maps: Mapping[str, Tensor], spec: str, *, features_per_step: int | None, samples: int,
    precision: str, protocol: str,
) -> dict[str, Groups]:  # fmt: skip
    """Set each group to *samples* grey levels, groups of *features_per_step* pixels (default: the image's width) from
    the smallest to the largest magnitude. The effect is the mean squared change of the class's probability.

    The mean is an expectation over a level that is uniform on the pixels' range, [0,1], in the normalised space as
    ``published`` (Quantus has it so). It is taken by the midpoint rule, which needs no draws, and of which ten levels
    are closer to it than a hundred draws.
    """
    levels = (torch.arange(samples, device=batch.images.device) + 0.5).view(-1, 1, 1, 1) / samples
    if protocol == "corrected":
        levels = batch.from_pixels(levels)
    before = unperturbed(batch, precision).probability
    ordered = {method: most_important_first(-attribution.abs(), protocol) for method, attribution in maps.items()}
    found: dict[str, Groups] = {}
    for methods, groups in _grouped(ordered, batch, features_per_step):

        def perturbed(images: Tensor, numbers: Tensor, groups: Tensor = groups) -> Tensor:
            redrawn = (groups.index_select(0, images) == (numbers // samples)[:, None]).view(
                -1, 1, *batch.images.shape[2:]
            )
            return torch.where(redrawn, levels[numbers % samples], batch.images.index_select(0, images))

        after = answers(batch, (int(groups.max()) + 1) * samples, perturbed, precision).probability
        effect = (after - before).square().unflatten(1, (-1, samples)).mean(2)
        found |= {method: Groups(sums(maps[method].abs(), groups), effect) for method in methods}
    return found


def monotonicity_correlation(batch: Batch, maps: Tensor, passed: Groups, *, protocol: str, **parameters: Any) -> Tensor:
    """Spearman's correlation, over groups of like importance, of a group's magnitude with the mean squared change of
    the class's probability when the group is redrawn, in [-1,1]; higher is more faithful.

    The ``corrected`` magnitudes are ranked to 1e-6 of the largest, so that rounding errors decide no rank. The paper's
    division by the squared probability is the same for all groups and changes no rank.

    Nguyen & Martínez, On Quantitative Aspects of Model Interpretability, arXiv 2007.07584, 2020, section 4.1.
    """
    attribution = passed.attribution
    if protocol == "corrected":
        attribution = rounded(attribution)
    return spearman(attribution, passed.effect)


def groups_cost(methods: list[str], image_size: int, parameters: Mapping[str, Any]) -> int:
    """Forward passes an image takes. Raises ValueError for too few groups."""
    step, groups = _groups((image_size, image_size), parameters["features_per_step"])
    return (1 if step == 1 else len(methods)) * groups


def redraw_cost(methods: list[str], image_size: int, parameters: Mapping[str, Any]) -> int:
    """Forward passes an image takes; the image itself has been passed, but in float32."""
    return groups_cost(methods, image_size, parameters) * int(parameters["samples"]) + (
        parameters["precision"] != "float32"
    )


def _grouped(
    ordered: Mapping[str, Tensor], batch: Batch, features_per_step: int | None
) -> list[tuple[list[str], Tensor]]:
    """The methods that share groups, and the group (N,H*W) int64 of each pixel, by the pixels' order (N,H*W)."""
    step, _ = _groups(batch.images.shape[2:], features_per_step)
    numbers = torch.arange(batch.images.shape[2:].numel(), device=batch.images.device)
    if step == 1:
        return [(list(ordered), numbers.expand(len(batch.images), -1))]
    group = (numbers // step).expand(len(batch.images), -1)
    return [([method], torch.empty_like(order).scatter_(1, order, group)) for method, order in ordered.items()]


def _groups(shape: tuple[int, ...], features_per_step: int | None) -> tuple[int, int]:
    """Pixels a group (default: the image's width), groups. Raises ValueError for too few."""
    height, width = shape
    step = features_per_step or width
    groups = -(-height * width // step)
    if groups < 3:
        raise ValueError(
            f"features_per_step={step} makes {groups} of {height * width} pixels, too few groups for a correlation; "
            "take fewer"
        )
    return step, groups


_SHARED = {"protocol": PROTOCOL, "features_per_step": positive_integer(None), "precision": PRECISION}

METRICS = {
    "faithfulness_estimate": Metric(
        faithfulness_estimate,
        passes=take_groups,
        cost=groups_cost,
        parameters=_SHARED | {"baseline": one_of(*BASELINES)},
        facet="faithfulness",
        direction="higher",
        range=(-1, 1),
        citation="Alvarez-Melis & Jaakkola, NeurIPS 2018",
    ),
    "monotonicity_correlation": Metric(
        monotonicity_correlation,
        passes=redraw_groups,
        cost=redraw_cost,
        parameters=_SHARED | {"samples": positive_integer(10)},
        facet="faithfulness",
        direction="higher",
        range=(-1, 1),
        citation="Nguyen & Martínez, arXiv 2007.07584, 2020",
    ),
}
