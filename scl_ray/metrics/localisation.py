"""Coherence: does the attribution lie where people see the object?"""

from typing import Any

import torch
from torch import Tensor

from scl_ray.attribution import Batch
from scl_ray.metrics.flipping import most_important_first
from scl_ray.metrics.metric import Metric
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


METRICS = {
    "pointing_game": Metric(
        pointing_game,
        needs=frozenset({"masks"}),
        undefined=(*FLAT, "empty mask"),
        facet="coherence",
        direction="higher",
        range=(0, 1),
        citation="Zhang et al., IJCV 2018",
    ),
    "attribution_localisation": Metric(
        attribution_localisation,
        needs=frozenset({"masks"}),
        undefined=(*FLAT, "empty mask"),
        facet="coherence",
        direction="higher",
        range=(0, 1),
        citation="Kohlbrenner et al., IJCNN 2020",
    ),
}
