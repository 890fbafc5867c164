"""What a network is trained for: a name to a loss over a batch's outputs and labels.

Every loss is called as ``loss(outputs, labels)`` with outputs (V·N, ·) of V views of N images, view after view, and
labels (V·N,) int64, and returns a scalar to be minimised. It says how many views it wants and what it acts on:

* ``logits``: class scores (K) of a linear layer that is trained with the backbone,
* ``projection``: 128 numbers of a projection head that is dropped after training,
* ``features``: the backbone's own d features.

pytorch-metric-learning takes seconds to import, so it is imported where a loss is made.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

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

    Acts on the L2-normalised projection. A batch of one class only, which has nothing to contrast, costs zero.
    """
    from pytorch_metric_learning.losses import SupConLoss
    from pytorch_metric_learning.reducers import MeanReducer

    return Objective(SupConLoss(temperature, reducer=MeanReducer()), "projection", views=2)


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

    The mean over the triplets that violate the margin (zero when none does). ``semi_hard`` mining is `semi_hard`'s;
    ``hard`` takes every anchor's farthest positive and nearest negative (Hermans et al. 2017).
    """
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.miners import BatchHardMiner

    distance = LpDistance(normalize_embeddings=False, p=2)
    loss = TripletMarginLoss(margin, distance=distance)
    hardest = BatchHardMiner(distance=distance)

    def mined(features: Tensor, labels: Tensor) -> Tensor:
        mine = hardest(features, labels) if mining == "hard" else semi_hard(features, labels, margin)
        return loss(features, labels, mine)

    return Objective(mined, "features")


@torch.no_grad()
def semi_hard(features: Tensor, labels: Tensor, margin: float) -> tuple[Tensor, Tensor, Tensor]:
    """Anchors, positives and negatives (Schroff et al. 2015, section 3.2): a negative for every pair of one class.

    The nearest negative that is farther away than the positive but by less than *margin*; where there is none, the
    nearest negative.
    """
    # pytorch-metric-learning's semi-hard miner keeps every such triplet, of which a batch of N has up to N³.
    distances = torch.cdist(features, features)
    same = labels[:, None] == labels
    negatives, order = distances.masked_fill(same, torch.inf).sort(dim=1)
    anchors, positives = (same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)).nonzero(as_tuple=True)
    has_negative = ~same[anchors].all(dim=1)
    anchors, positives = anchors[has_negative], positives[has_negative]
    place = torch.searchsorted(negatives, distances, right=True).clamp(max=len(labels) - 1)[anchors, positives]
    close = negatives[anchors, place] < distances[anchors, positives] + margin
    return anchors, positives, order[anchors, torch.where(close, place, 0)]


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
