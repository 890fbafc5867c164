"""From frozen features to class scores: linear probe, class prototypes, k nearest neighbours.

Everything here is deterministic, in float64 where something is fitted.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

NEIGHBOURS = 20
PENALTY = 1e-5


def linear_probe(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Weight (K, d) and bias (K,), float32, of multinomial logistic regression on *features* (N, d).

    Minimises the mean cross-entropy plus PENALTY / 2 times the squared weights, to convergence (L-BFGS in float64),
    from zero. The penalty keeps the minimum finite where the classes can be separated.
    """
    x = features.double()
    centre = x.mean(dim=0)
    # Centred features give the same minimum, the bias being free, and a far better conditioned one.
    x = x - centre
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, device=x.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=2000,
        tolerance_grad=1e-7,
        tolerance_change=0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(functional.linear(x, weight, bias), labels)
        loss = loss + PENALTY / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    with torch.no_grad():
        return weight.float(), (bias - weight @ centre).float()


def prototypes(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Per class the mean of its L2-normalised *features* (N, d), itself normalised: (K, d), float32."""
    normalised = functional.normalize(features.double(), dim=1)
    members = functional.one_hot(labels, classes).double()
    return functional.normalize(members.T @ normalised, dim=1).float()


def nearest_neighbours(features: Tensor, labels: Tensor, queries: Tensor, classes: int, k: int = NEIGHBOURS) -> Tensor:
    """The class (M,) that most of the *k* training *features* (N, d) nearest to each of *queries* (M, d) have.

    Nearest by cosine; k is at most N; of classes with equally many votes the first wins.
    """
    known = functional.normalize(features, dim=1)
    winners = []
    for chunk in functional.normalize(queries, dim=1).split(1024):
        nearest = (chunk @ known.T).topk(min(k, len(known)), dim=1).indices
        winners.append(functional.one_hot(labels[nearest], classes).sum(dim=1).argmax(dim=1))
    return torch.cat(winners)


def accuracy(predictions: Tensor, labels: NDArray[np.int64]) -> float:
    """The share of *predictions* (N,) that are their *labels*."""
    return float(np.mean(predictions.cpu().numpy() == labels))


class ReadOut(nn.Module):
    """Features (N, d) to class scores (N, K): one linear layer, on L2-normalised features or on features as they are.

    The scores are divided by *temperature*.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, *, normalise: bool, temperature: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.normalise = normalise
        self.temperature = temperature

    def forward(self, features: Tensor) -> Tensor:
        if self.normalise:
            features = functional.normalize(features, dim=1)
        return functional.linear(features, self.weight, self.bias) / self.temperature
