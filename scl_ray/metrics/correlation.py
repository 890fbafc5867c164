"""Correlations of two rows of values, row by row; nan where one of them is constant."""

import torch
from torch import Tensor

from scl_ray.metrics.ranking import mean_ranks


def pearson(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation (N,) in [-1,1] of the rows of *first* and *second*, (N,n) float64."""
    x, y = _centred(first), _centred(second)
    return ((x * y).sum(1) / (x.square().sum(1) * y.square().sum(1)).sqrt()).clamp(-1, 1)


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rank correlation (N,) in [-1,1] of the rows of *first* and *second*, (N,n) float64.

    Equal values share the mean of their ranks.
    """
    return pearson(mean_ranks(first), mean_ranks(second))


def _centred(values: Tensor) -> Tensor:
    centred = values - values.mean(1, keepdim=True)
    # What varies by no more than float32's rounding of the network's scores is constant: zero, and so nan above.
    varies = centred.abs().amax(1, keepdim=True) > 1e-6 * values.abs().amax(1, keepdim=True)
    return torch.where(varies, centred, 0)
