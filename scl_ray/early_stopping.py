"""What trials of different objectives are compared by while they train, to stop the hopeless ones early."""

import torch
from torch import Tensor
from torch.nn import functional


@torch.no_grad()
def prototype_accuracy(features: Tensor, labels: Tensor, classes: int) -> float:
    """Share of the *features* (N, d) whose nearest class prototype, by cosine, is that of their label (N,).

    A prototype is the mean of the other features of its class, each of length one, so none is compared with itself. In
    [0, 1], higher is better. It needs no read-out and no training images, so it means the same for every objective and
    costs one pass over the validation split.
    """
    features = functional.normalize(features.float(), dim=1)
    members = functional.one_hot(labels, classes).to(features)
    sums = members.T @ features
    cosines = features @ functional.normalize(sums, dim=1).T
    rows = torch.arange(len(labels), device=labels.device)
    others = functional.normalize(sums[labels] - features, dim=1)
    # An image that is alone in its class has no prototype to be near to, and counts as wrong.
    alone = members.sum(dim=0)[labels] == 1
    cosines[rows, labels] = (features * others).sum(dim=1).masked_fill(alone, -torch.inf)
    return float((cosines.argmax(dim=1) == labels).float().mean())
