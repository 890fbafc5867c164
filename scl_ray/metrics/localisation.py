"""Coherence: does the attribution lie where people see the object?

Of signed maps, what ranks pixels ranks them by value, and what weighs them takes the positive part: negative
attribution speaks against the class, so it is no sign of where the object is. `attribution_localisation` takes
magnitudes, as the study and Quantus do.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scl_ray.attribution import Batch
from scl_ray.attribution.registry import PROTOCOL, positive_integer
from scl_ray.metrics.metric import Metric
from scl_ray.metrics.ranking import mean_ranks, most_important_first, rounded
from scl_ray.metrics.undefined import FLAT


def pointing_game(batch: Batch, maps: Tensor, passed: None, *, protocol: str) -> Tensor:
    """1 where the most important pixel lies in the object's mask, else 0; higher is better.

    Of several equal maxima ``corrected`` takes the first; ``published`` counts a hit for any of them, as Quantus does.

    Zhang et al., Top-Down Neural Attention by Excitation Backprop, IJCV 126, 2018.
    """
    assert batch.masks is not None
    masks, values = batch.masks.flatten(1).bool(), maps.flatten(1)
    if protocol == "published":
        return (masks & (values == values.amax(1, keepdim=True))).any(1).float()
    return masks.gather(1, most_important_first(maps, protocol)[:, :1])[:, 0].float()


def attribution_localisation(batch: Batch, maps: Tensor, passed: None, **parameters: Any) -> Tensor:
    """Share of the map's total magnitude inside the object's mask, in [0,1]; higher is better.

    Kohlbrenner et al., Towards Best Practice in Explaining Neural Network Decisions with LRP, IJCNN 2020.
    """
    assert batch.masks is not None
    magnitudes = maps.flatten(1).double().abs()
    inside = torch.where(batch.masks.flatten(1).bool(), magnitudes, 0).sum(1)
    return inside / magnitudes.sum(1)


def top_k_intersection(batch: Batch, maps: Tensor, passed: None, *, k: int | None, protocol: str) -> Tensor:
    """Share of the *k* most important pixels that lie in the object's mask, in [0,1]; higher is better.

    k: by default 2 % of the pixels, which are about 1000 at 224x224, as in the paper. A mask of fewer than *k* pixels
    cannot be hit by all. Raises ValueError when the map has fewer.

    Theiner et al., Interpretable Semantic Photo Geolocation, WACV 2022.
    """
    most = k or max(1, round(0.02 * maps[0].numel()))
    has_pixels(batch, k=most)
    return _hits(batch, maps, protocol)[:, :most].double().mean(1)


def has_pixels(batch: Batch, *, k: int | None, **parameters: Any) -> None:
    """Raise ValueError, in one sentence, when an image has fewer than *k* pixels."""
    pixels = batch.images.shape[2:].numel()
    if k is not None and k > pixels:
        raise ValueError(f"top_k_intersection: k={k} is more than the {pixels} pixels of an image; take fewer")


def relevance_rank_accuracy(batch: Batch, maps: Tensor, passed: None, *, protocol: str) -> Tensor:
    """Share of the K most important pixels that lie in the object's mask of K pixels, in [0,1]; higher is better.

    Arras et al., CLEVR-XAI, Information Fusion 81, 2022, eq. 2.
    """
    hits = _hits(batch, maps, protocol)
    size = hits.sum(1, keepdim=True)
    first = torch.arange(hits.shape[1], device=hits.device) < size
    return (hits & first).sum(1).double() / size[:, 0]


def relevance_mass_accuracy(batch: Batch, maps: Tensor, passed: None, **parameters: Any) -> Tensor:
    """Share of the map's positive part inside the object's mask, in [0,1]; higher is better.

    The paper defines it for maps of positive relevance. Quantus sums signed values, so that a negative sum outside
    makes "shares" above 1 and one near zero makes any number; of maps without negative values both are the same.
    Undefined where nothing is positive. Arras et al., CLEVR-XAI, Information Fusion 81, 2022, eq. 1.
    """
    assert batch.masks is not None
    positive = maps.flatten(1).double().clamp(min=0)
    return torch.where(batch.masks.flatten(1).bool(), positive, 0).sum(1) / positive.sum(1)


def localisation_auc(batch: Batch, maps: Tensor, passed: None, *, protocol: str) -> Tensor:
    """Area under the ROC curve of the map's values as scores of whether a pixel lies in the object's mask, in [0,1].

    0.5 is chance; higher is better. Equal values count half, as the trapezoid rule has it; ``corrected`` rounds to 1e-6
    of the map's largest magnitude first. Undefined where the mask is empty or covers the image.

    Fawcett, An Introduction to ROC Analysis, Pattern Recognition Letters 27(8), 2006.
    """
    assert batch.masks is not None
    masks, values = batch.masks.flatten(1).bool(), maps.flatten(1).double()
    if protocol == "corrected":
        values = rounded(values)
    # The area is the share of pairs, a pixel in the mask and one outside, that are in the right order (Mann and
    # Whitney).
    inside = masks.sum(1).double()
    right = torch.where(masks, mean_ranks(values), 0).sum(1) - inside * (inside + 1) / 2
    return right / (inside * (masks.shape[1] - inside))


def _hits(batch: Batch, maps: Tensor, protocol: str) -> Tensor:
    """Whether each pixel, from the most to the least important, lies in the mask; (N,H*W) bool."""
    assert batch.masks is not None
    return batch.masks.flatten(1).bool().gather(1, most_important_first(maps, protocol))


def _metric(function: Callable[..., Tensor], citation: str, **more: Any) -> Metric:
    return Metric(
        function,
        needs=frozenset({"masks"}),
        undefined=(*FLAT, "empty mask"),
        facet="coherence",
        direction="higher",
        range=(0, 1),
        citation=citation,
        **more,
    )


METRICS = {
    "pointing_game": _metric(pointing_game, "Zhang et al., IJCV 2018"),
    "attribution_localisation": _metric(attribution_localisation, "Kohlbrenner et al., IJCNN 2020"),
    "top_k_intersection": _metric(
        top_k_intersection,
        "Theiner et al., WACV 2022",
        parameters={"protocol": PROTOCOL, "k": positive_integer(None)},
        serves=has_pixels,
    ),
    "relevance_mass_accuracy": _metric(relevance_mass_accuracy, "Arras et al., Information Fusion 2022"),
    "relevance_rank_accuracy": _metric(relevance_rank_accuracy, "Arras et al., Information Fusion 2022"),
    "localisation_auc": _metric(localisation_auc, "Fawcett, Pattern Recognition Letters 2006"),
}
