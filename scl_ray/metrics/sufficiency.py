"""Sufficiency: do images with like maps get like predictions?"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scl_ray import attribution
from scl_ray.attribution import Batch
from scl_ray.attribution.registry import PROTOCOL, positive_number
from scl_ray.metrics.metric import Metric


def compare_with_reference(
    batch: Batch, maps: Mapping[str, Tensor], spec: str, *, threshold: float, protocol: str
) -> dict[str, Tensor]:
    """Of the reference images whose maps by the same method are like the image's, the share (N,) float64 that the
    network predicts to be of the image's class; nan where there are none.

    A map is divided by its largest magnitude. Two are alike when their Euclidean distance is at most *threshold* times
    the largest distance between two maps of the reference. Flat maps of the reference are like none.
    """
    assert batch.reference is not None
    passed = batch.passed.get("class_score")
    predicted = (batch.scores(batch.images) if passed is None else passed.scores).argmax(1)
    explained = _reference_maps(batch, maps)
    found = {}
    for method, given in maps.items():
        reference, classes, largest = explained[method]
        alike = torch.cdist(_scaled(given), _scaled(reference)) <= threshold * largest
        same = predicted[:, None] == classes
        found[method] = (alike & same).sum(1).double() / alike.sum(1)
    return found


def sufficiency(batch: Batch, maps: Tensor, passed: Tensor, **parameters: Any) -> Tensor:
    """Probability that an image is predicted to be of the same class as one whose map is alike, in [0,1]; higher is
    more sufficient. Undefined where no map of the reference is alike.

    The other images are the fixed reference, explained by the same method for the classes that the network predicts of
    them. Quantus takes those of the batch, scales by what is largest in it, and divides pixels by their variance in it,
    which is zero for some, so its values depend on the batch. Both protocols agree.

    Dasgupta et al., Framework for Evaluating Faithfulness of Local Explanations, ICML 2022, section 3.
    """
    return passed


def _reference_maps(batch: Batch, methods: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Of each method the maps (M',H,W) float32 of the reference that are not flat, the classes (M',) that are predicted
    of their images, and the largest distance of two of the maps, scaled; made once for a model.

    Kept as they are: scaled ones, in float64, would take twice the memory.
    """
    assert batch.reference is not None
    kept: dict[str, tuple[Tensor, Tensor, Tensor]] = batch.kept.setdefault("reference maps", {})
    missing = [method for method in methods if method not in kept]
    if missing:
        classes = batch.scores(batch.reference).argmax(1)
        found: dict[str, list[Tensor]] = {method: [] for method in missing}
        for positions in torch.arange(len(classes)).split(batch.at_once):
            part = batch.but(
                images=batch.reference[positions],
                targets=classes[positions],
                # Negative, so that nothing is drawn as for an image that is scored.
                image_ids=(-1 - positions).tolist(),
                masks=None,
            )
            for method, maps in attribution.explain_many(part, missing).items():
                found[method].append(maps)
        for method, parts in found.items():
            maps = torch.cat(parts)
            told = maps.isfinite().all(2).all(1) & (maps.amax((1, 2)) > maps.amin((1, 2)))
            scaled = _scaled(maps[told])
            # Of no maps at all, the largest distance is that of none.
            distances = torch.cdist(scaled, scaled) if len(scaled) else scaled.new_zeros(1)
            kept[method] = maps[told], classes[told], distances.max()
    return kept


def _scaled(maps: Tensor) -> Tensor:
    values = maps.flatten(1).double()
    return values / values.abs().amax(1, keepdim=True)


METRICS = {
    "sufficiency": Metric(
        sufficiency,
        passes=compare_with_reference,
        # The reference is explained once for all images.
        cost=lambda methods, image_size, parameters: 0,
        needs=frozenset({"re-explanation", "reference"}),
        parameters={"protocol": PROTOCOL, "threshold": positive_number(0.6)},
        facet="faithfulness",
        direction="higher",
        range=(0, 1),
        citation="Dasgupta et al., ICML 2022",
    ),
}
