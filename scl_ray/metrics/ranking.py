"""The order of an attribution map's pixels.

A map's rounding errors are to decide no order: ``corrected`` rounds to 1e-6 of the largest magnitude first.
"""

import numpy as np
import torch
from torch import Tensor


def rounded(values: Tensor) -> Tensor:
    """Rows (N,P) in units of 1e-6 of their largest magnitude, as whole numbers; float64."""
    exact = values.double()
    largest = exact.abs().amax(1, keepdim=True)
    return (exact / torch.where(largest > 0, largest, 1)).mul(1e6).round()


def most_important_first(maps: Tensor, protocol: str) -> Tensor:
    """Pixel indices (N,H*W) int64 of *maps* (N,H,W) from the highest to the lowest value.

    ``corrected`` orders `rounded` values and breaks ties by index. ``published`` leaves ties to NumPy's unstable sort,
    as Quantus does.
    """
    values = maps.flatten(1)
    if protocol == "published":
        return torch.from_numpy(np.argsort(-values.cpu().numpy(), axis=1)).to(maps.device)
    return torch.sort(-rounded(values), dim=1, stable=True).indices


def positions(order: Tensor) -> Tensor:
    """At which place (N,P) each of P things comes in the *order* (N,P) that `most_important_first` gives."""
    return torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )


def mean_ranks(values: Tensor) -> Tensor:
    """Ranks (N,P) float64 from 1 on, from the lowest to the highest of *values* (N,P); equal values share their mean
    rank."""
    ordered = values.sort(1).values.contiguous()
    below, upto = (torch.searchsorted(ordered, values.contiguous(), side=side) for side in ("left", "right"))
    return (below + upto + 1).double() / 2
