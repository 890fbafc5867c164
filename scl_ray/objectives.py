"""What a network is trained for: a name to a loss over a batch's outputs and labels.

Every loss is called as ``loss(outputs, labels)`` with outputs (V·N, ·) of V views of N images, view after view, and
labels (V·N,) int64, and returns a scalar to be minimised. It says how many views it wants and what it acts on:

* ``logits``: class scores (K) of a linear layer that is trained with the backbone,
* ``projection``: 128 numbers of a projection head that is dropped after training,
* ``features``: the backbone's own d features.

The objectives that have a name here are formulas over whole matrices (V·N, V·N). pytorch-metric-learning has them too,
but lists the pairs and triplets of each batch, so that a GPU waits several times a step until the host knows how many
there are. Any other of its losses goes by its own name; the library takes seconds to import, so that happens where one
is made.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from scl_ray import config, plugins
from scl_ray.config import InputError

PROJECTION_SIZE = 128

Loss = Callable[[Tensor, Tensor], Tensor]


class Objective(NamedTuple):
    """A loss, which of the network's outputs it takes, and how many augmented views of each image it wants.

    ``weights`` are the loss's own (class proxies), trained with the backbone.
    """

    loss: Loss
    acts_on: Literal["logits", "projection", "features"]
    views: int = 1
    weights: nn.Module | None = None


def cross_entropy(label_smoothing: float = 0.0) -> Objective:
    """Softmax cross-entropy of the logits."""
    return Objective(nn.CrossEntropyLoss(label_smoothing=label_smoothing), "logits")


def supcon(temperature: float = 0.07) -> Objective:
    """Supervised contrastive loss (Khosla et al. 2020, equation 2, L_out), the mean over all anchors of two views.

    Acts on the L2-normalised projection. The authors' code multiplies by its temperature over a base temperature, which
    is 1 where the two are equal, as by default. An anchor without a positive, which two views never leave, costs zero.
    """

    def contrast(projections: Tensor, labels: Tensor) -> Tensor:
        normalised = functional.normalize(projections, dim=1)
        positive, itself = _positives(labels)
        logits = (normalised @ normalised.T / temperature).masked_fill(itself, -torch.inf)
        logs = logits.log_softmax(dim=1).where(positive, 0)
        return -(logs.sum(dim=1) / positive.sum(dim=1).clamp(min=1)).mean()

    return Objective(contrast, "projection", views=2)


def simclr(temperature: float = 0.5) -> Objective:
    """NT-Xent (Chen et al. 2020, equation 1), the mean over all anchors of two views; the labels are not used.

    It is `supcon` with every image a class of its own; a batch then has one positive per anchor.
    """
    contrast = supcon(temperature).loss

    def nt_xent(projections: Tensor, labels: Tensor) -> Tensor:
        images = torch.arange(len(projections) // 2, device=projections.device)
        return contrast(projections, images.repeat(2))

    return Objective(nt_xent, "projection", views=2)


def triplet(margin: float = 0.3, mining: Literal["semi_hard", "hard"] = "semi_hard") -> Objective:
    """Triplet loss max(0, d(a, p) - d(a, n) + margin), Euclidean, on the features without normalising them.

    The mean over the mined triplets that violate the margin (zero when none does). ``semi_hard`` takes, for every pair
    of one class, the negative of `semi_hard`; ``hard`` every anchor's farthest positive and nearest negative (Hermans
    et al. 2017).
    """

    def mined(features: Tensor, labels: Tensor) -> Tensor:
        # Only differences count. Far from the origin, as after a ReLU, rounding would decide which negative is nearest.
        features = features - features.detach().mean(dim=0)
        distances = torch.cdist(features, features)
        positive, itself = _positives(labels)
        to_negatives = distances.masked_fill(positive | itself, torch.inf)
        if mining == "hard":
            farthest = distances.masked_fill(~positive, -torch.inf).max(dim=1).values
            violation = farthest - to_negatives.min(dim=1).values + margin
        else:
            negatives = semi_hard(distances.detach(), to_negatives.detach(), margin)
            violation = (distances - to_negatives.gather(1, negatives) + margin).where(positive, 0)
        active = violation > 0
        return violation.where(active, 0).sum() / active.sum().clamp(min=1)

    return Objective(mined, "features")


def semi_hard(distances: Tensor, to_negatives: Tensor, margin: float) -> Tensor:
    """The negative (N, N) int64 of every anchor (row) with every positive (column) (Schroff et al. 2015, section 3.2).

    The nearest that is farther away than the positive but by less than *margin*; where there is none, the nearest.
    *distances* (N, N) are those of all images, *to_negatives* the same with infinity where there is no negative.
    """
    # pytorch-metric-learning's semi-hard miner keeps every such triplet, of which a batch of N has up to N³.
    ascending, order = to_negatives.sort(dim=1)
    place = torch.searchsorted(ascending, distances.contiguous(), right=True).clamp(max=len(distances) - 1)
    close = ascending.gather(1, place) < distances + margin
    return order.gather(1, place.where(close, 0))


def _positives(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which pairs (N, N) are two images of one class, and which an image and itself."""
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return (labels[:, None] == labels) & ~itself, itself


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "cross_entropy": cross_entropy,
    "supcon": supcon,
    "triplet": triplet,
    "simclr": simclr,
}


def build(objective: config.Objective, classes: int) -> Objective:
    """The objective that the configuration names, for *classes* classes.

    A user's own, ``module:callable``, is called as ``loss(projections, labels, **parameters)``.
    """
    if isinstance(objective, config.MetricLearning):
        return _metric_learning(objective.name, objective.parameters, classes, objective.views)
    if isinstance(objective, config.UserObjective):
        return Objective(partial(plugins.load(objective.name), **objective.parameters), "projection", objective.views)
    return OBJECTIVES[objective.name](**objective.parameters_by_name)


def check_metric_learning(name: str, parameters: Mapping[str, Any]) -> None:
    """Raise InputError unless *name* is a loss of pytorch-metric-learning that takes *parameters* and random batches.

    The loss is computed once, since some say only then what they lack.
    """
    objective = _metric_learning(name, parameters, classes=3, views=1)
    try:
        with torch.random.fork_rng(devices=[]):
            objective.loss(torch.randn(64, PROJECTION_SIZE), torch.arange(64) % 3)
    except (TypeError, ValueError, AssertionError, NotImplementedError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"objective {name} cannot be trained on random batches: {reason}") from error


def _metric_learning(name: str, parameters: Mapping[str, Any], classes: int, views: int) -> Objective:
    """The loss by class name, acting on the projection, which most of the library's losses normalise themselves.

    Sizes that its signature requires and *parameters* leave out are filled in.
    """
    from pytorch_metric_learning import losses

    kind: Any = getattr(losses, name, None)
    is_loss = inspect.isclass(kind) and issubclass(kind, losses.BaseMetricLossFunction)
    if not is_loss:
        known = ", ".join(OBJECTIVES)
        raise InputError(
            f"there is no objective {name!r}; choose from {known}, or name a loss of pytorch-metric-learning "
            "or a module:callable of your own"
        )
    required = {
        key
        for ancestor in kind.__mro__
        for key, parameter in inspect.signature(ancestor.__init__).parameters.items()
        if parameter.default is parameter.empty
    }
    sizes = {"num_classes": classes} | dict.fromkeys(("embedding_size", "descriptors_dim", "l"), PROJECTION_SIZE)
    filled = {key: size for key, size in sizes.items() if key in required}
    try:
        loss = kind(**(filled | dict(parameters)))
    except (TypeError, ValueError, AssertionError) as error:
        raise InputError(f"objective {name} does not take {dict(parameters)}: {error}") from error
    match name:
        case "VICRegLoss":
            return Objective(lambda z, _: loss(z.chunk(2)[0], ref_emb=z.chunk(2)[1]), "projection", 2, loss)
        case "ManifoldLoss":  # like VICReg's, it has no use for labels and refuses them
            return Objective(lambda z, _: loss(z), "projection", views, loss)
        case _:
            return Objective(loss, "projection", views, loss)


class ProjectionHead(nn.Sequential):
    """Linear(d, d), ReLU, Linear(d, 128) (Khosla et al. 2020, section 3.1), not normalised: losses do that."""

    def __init__(self, features: int) -> None:
        super().__init__(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, PROJECTION_SIZE))


def head(acts_on: str, features: int, classes: int) -> nn.Module:
    """What turns *features* features (N, d) into the outputs that an objective acts on."""
    match acts_on:
        case "logits":
            return nn.Linear(features, classes)
        case "projection":
            return ProjectionHead(features)
        case _:
            return nn.Identity()
