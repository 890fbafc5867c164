"""Metrics: how good an attribution map is, as one number per image."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scl_ray import attribution, specs
from scl_ray.attribution import Batch, registry
from scl_ray.attribution.registry import Resolved
from scl_ray.metrics import (
    axioms,
    complexity,
    flipping,
    groups,
    infidelity,
    localisation,
    mosaic,
    quantus_adapter,
    randomisation,
    regions,
    road,
    ssim,
    stability,
    subsets,
    sufficiency,
)
from scl_ray.metrics.metric import Metric
from scl_ray.metrics.undefined import undefined

__all__ = ["METRICS", "Batch", "Metric", "Scores", "check", "cost", "resolve", "score", "score_many"]

Pair = tuple[str, str]


class Scores(NamedTuple):
    """values: (N,) float32, nan where undefined. curve: (N,steps) float32, or None for a metric without one."""

    values: Tensor
    curve: Tensor | None


METRICS: dict[str, Metric] = {
    **flipping.METRICS, **regions.METRICS, **road.METRICS, **subsets.METRICS, **groups.METRICS,
    **infidelity.METRICS, **sufficiency.METRICS, **ssim.METRICS,
    **stability.METRICS, **randomisation.METRICS, **complexity.METRICS, **localisation.METRICS, **mosaic.METRICS,
    **axioms.METRICS,
}  # fmt: skip


def resolve(spec: str, **parameters: Any) -> Resolved[Metric]:
    """The metric that *spec* names: built in, ``quantus:ClassName``, or ``module:callable``.

    Raises ValueError in one sentence.
    """
    name = specs.parse(spec)[0]
    known = quantus_adapter.metrics_like(name) if name.startswith(quantus_adapter.PREFIX) else METRICS
    return registry.resolve(spec, known, "metric", _user_metric, parameters)


def score(
    metric: str,
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    maps: Tensor,
    *,
    method: str | None = None,
    masks: Tensor | None = None,
    layer: nn.Module | None = None,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
    seed: int = 0,
    image_ids: Sequence[int] | Tensor | None = None,
    reference: Tensor | None = None,
    reference_labels: Tensor | None = None,
    **parameters: Any,
) -> Tensor:
    """The values (N,) float32 of *metric* for the attribution *maps* (N,H,W) of *images*; nan where undefined.

    metric: a name of `METRICS`, a spec as ``ssim_continuity[noise=0.1]``, or ``module:callable``, a function
      ``(model, images, targets, maps, **parameters)`` that gives (N,).
    model, images (N,C,H,W), targets (N,), layer: as `scl_ray.attribution.explain` takes them.
    method: what made the maps; metrics that explain again need it.
    masks: (N,H,W) bool, true on the object, for the localisation metrics.
    mean, std: per channel, the pixel space for noise and clamping; without them images are taken as already in [0,1].
    seed, image_ids: with the metric's spec they decide what is drawn for an image; the ids default to 0..N-1.
    reference, reference_labels: a fixed set of other images and their classes, for metrics that need some.

    Probabilities are the model's own. Raises ValueError when the metric lacks something it needs.
    """
    resolved = resolve(metric, **parameters)
    if method is None and "re-explanation" in resolved.entry.needs:
        raise ValueError(f"{resolved.spec} explains again: give the method that made the maps")
    # A metric that does not explain again takes maps of any origin, so they need no name.
    name = attribution.resolve(method).spec if method is not None else "given maps"
    batch = Batch(
        model, images.detach(), targets, layer, mean, std, seed, image_ids, reference, reference_labels, masks
    )  # fmt: skip
    _check(batch, name, maps, resolved)
    if resolved.entry.passes is not None:
        _check_classes(batch)
    found = score_many(batch, {name: maps.detach().float()}, [(name, resolved.spec)])
    return found[name, resolved.spec].values


def score_many(batch: Batch, maps: Mapping[str, Tensor], cells: Iterable[Pair]) -> dict[Pair, Scores]:
    """Score each (method, metric) of *cells*, sharing the passes of the network between methods and metrics.

    maps: (N,H,W) by the method's canonical spec. Raises ValueError when a metric lacks something it needs.
    """
    pairs = list(cells)
    for method, metric in pairs:
        _check(batch, method, maps[method], resolve(metric))
    found = {}
    for group in _shared(pairs):
        methods = _unique(method for method, _ in group)
        shared = resolve(group[0][1])
        passed: Mapping[str, Any] = dict.fromkeys(methods)
        if shared.entry.passes is not None:
            given = _of_passes(shared)
            passed = shared.entry.passes(batch, {m: maps[m] for m in methods}, _seeding_spec(shared), **given)
        for method, metric in group:
            found[method, metric] = _values(batch, maps[method], passed[method], resolve(metric))
    return found


def cost(cells: Iterable[Pair], image_size: int) -> int:
    """Forward passes that scoring one image of *image_size* squared takes, explanations of the image itself aside."""
    total = 0
    for group in _shared(list(cells)):
        shared = resolve(group[0][1])
        total += shared.entry.cost(_unique(method for method, _ in group), image_size, shared.parameters)
    return total


def check(batch: Batch, metrics: Iterable[str]) -> None:
    """Raise ValueError, in one sentence, when a metric cannot be computed for the model and the size of the images of
    *batch*, of one image."""
    for metric in map(resolve, metrics):
        if metric.entry.serves is not None:
            metric.entry.serves(batch, **metric.parameters)


def _shared(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """The cells, grouped by the run of the network that serves them."""
    groups: dict[Any, list[Pair]] = {}
    for pair in pairs:
        metric = resolve(pair[1])
        passes = metric.entry.passes
        key = (passes, *sorted(_of_passes(metric).items())) if passes is not None else pair[1]
        groups.setdefault(key, []).append(pair)
    return list(groups.values())


def _of_passes(metric: Resolved[Metric]) -> dict[str, Any]:
    """The parameters that the part that runs the network depends on."""
    return {key: value for key, value in metric.parameters.items() if key not in metric.entry.after_passes}


def _seeding_spec(metric: Resolved[Metric]) -> str:
    """By what passes that metrics share draw: the same whichever of these metrics are asked for, at any precision."""
    first = next((name for name, entry in METRICS.items() if entry.passes is metric.entry.passes), None)
    if first is None:
        return metric.spec
    drawing = {key: value for key, value in _of_passes(metric).items() if key != "precision"}
    return specs.canonical(first, drawing, METRICS[first].defaults)


def _values(batch: Batch, maps: Tensor, passed: Any, metric: Resolved[Metric]) -> Scores:
    values = metric.entry.function(batch, maps, passed, **metric.parameters).detach().float()
    if values.shape != (len(maps),):
        raise ValueError(f"{metric.spec} gave values of shape {tuple(values.shape)}, not one an image")
    nothing, nan = undefined(metric.entry.undefined, batch, maps, passed, values), float("nan")
    curve = None
    if metric.entry.curve is not None:
        curve = metric.entry.curve(passed, **metric.parameters).float().masked_fill(nothing[:, None], nan)
    return Scores(values.masked_fill(nothing, nan), curve)


def _check(batch: Batch, method: str, maps: Tensor, metric: Resolved[Metric]) -> None:
    shape = (len(batch.images), *batch.images.shape[2:])
    if batch.model.training:
        raise ValueError("the model is in training mode, where batch-norm mixes images; call model.eval() first")
    if batch.targets.shape != shape[:1] or batch.targets.dtype != torch.int64:
        raise ValueError("targets must be the class of each image, (N,) int64")
    if maps.shape != shape:
        raise ValueError(f"maps have shape {tuple(maps.shape)}, not {shape}, one (H,W) map an image")
    if "masks" in metric.entry.needs and (batch.masks is None or batch.masks.shape != shape):
        raise ValueError(f"{metric.spec} needs masks of shape {shape}, true on the object")
    if "reference" in metric.entry.needs and batch.reference is None:
        raise ValueError(f"{metric.spec} needs reference images; give reference=, a tensor (M,C,H,W)")
    if "class" in metric.entry.needs and not attribution.explains_class(method):
        raise ValueError(f"{metric.spec} contrasts classes, and {method} explains none")


def _check_classes(batch: Batch) -> None:
    """One pass more, of one image: on a GPU, reading the score of a class that is not there ends the process."""
    with torch.inference_mode():
        classes = batch.model(batch.images[:1]).shape[1]
    if not bool(((batch.targets >= 0) & (batch.targets < classes)).all()):
        raise ValueError(f"targets must be classes from 0 to {classes - 1}, as many as the model scores")


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _user_metric(function: Callable[..., Tensor]) -> Metric:
    def call(batch: Batch, maps: Tensor, passed: None, **parameters: Any) -> Tensor:
        with torch.enable_grad():
            given = registry.accepted(function, parameters)
            return function(batch.model, batch.images, batch.targets, maps, **given).to(maps.device)

    return Metric(
        call,
        facet="user",
        direction=getattr(function, "direction", "higher"),
        range=(-float("inf"), float("inf")),
        undefined=(),
        parameters=registry.parameters_of(function, given=4),
        citation="the user's own",
    )
