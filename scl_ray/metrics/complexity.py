"""How few pixels an attribution map rests on."""

from typing import Any

import torch
from torch import Tensor

from scl_ray.attribution import Batch
from scl_ray.metrics.metric import Metric


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
}
