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
    features = functional.normalize(features, dim=1)
    members = functional.one_hot(labels, classes).to(features)
    counts, sums = members.sum(dim=0), members.T @ features
    # A class without images is nobody's nearest, and an image that is alone in its class counts as wrong.
    cosines = (features @ functional.normalize(sums, dim=1).T).masked_fill(counts == 0, -torch.inf)
    others = functional.normalize(sums[labels] - features, dim=1)
    own = (features * others).sum(dim=1).masked_fill(counts[labels] == 1, -torch.inf)
    cosines.scatter_(1, labels[:, None], own[:, None])
    return float((cosines.argmax(dim=1) == labels).float().mean())
