"""What is explained: which score of an image a method attributes to its pixels.

Every question is a weighted sum of a network's outputs, so one forward pass serves all classes, and methods need not
know which question they answer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scl_ray.attribution.batch import Batch
from scl_ray.attribution.layers import cam_layer
from scl_ray.attribution.passes import Forward


@dataclass(frozen=True, eq=False)
class Question:
    """The score of image n: the sum of the outputs (N,K) of *network* for it, times *weights* (N,K).

    batch: the images asked about, and their context. layer: what CAMs explain, a part of *network*.
    """

    batch: Batch
    network: nn.Module
    weights: Tensor

    @property
    def images(self) -> Tensor:
        return self.batch.images

    @property
    def layer(self) -> nn.Module:
        """Raises ValueError for a network without feature maps."""
        return layer_of(self.batch)

    def score(self, images: Tensor, weights: Tensor) -> Tensor:
        """The scores (M,) of *images* (M,C,H,W), copies of the batch's, each with *weights* (M,K) of its own."""
        return (self.network(images) * weights).sum(1)

    def scalar(self) -> nn.Module:
        """`score` as a module, which is what Captum attributes; *weights* are its additional forward argument."""
        return _Score(self.network)


def layer_of(batch: Batch) -> nn.Module:
    """The layer that CAMs explain: the batch's, or found. Raises ValueError for a network without feature maps."""
    if batch.layer is not None:
        return batch.layer
    if "layer" not in batch.kept:
        batch.kept["layer"] = cam_layer(batch.model, batch.images[:1])
    layer: nn.Module = batch.kept["layer"]
    return layer


class _Score(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.training = network.training

    def forward(self, images: Tensor, weights: Tensor) -> Tensor:
        return (self.network(images) * weights).sum(1)


class Features(nn.Module):
    """The features (N,d) that a classifier's last linear layer reads."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.model = model
        last: list[nn.Linear] = []
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        handles = [module.register_forward_hook(lambda module, *_: last.append(module)) for module in linear]
        try:
            with torch.no_grad():
                model(images)
        finally:
            for handle in handles:
                handle.remove()
        if not last:
            raise ValueError(f"{type(model).__name__} has no linear layer whose input could be its embedding; "
                             "give the model an embed(images) method, or explain its class_score")  # fmt: skip
        self.last = last[-1]
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        features: list[Tensor] = []
        handle = self.last.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
        try:
            self.model(images)
        finally:
            handle.remove()
        return features[0]


class _Embedding(nn.Module):
    """The features (N,d) that *model* makes itself, by its own ``embed``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.model.embed(images)  # type: ignore[operator]  # a submodule, to mypy
        return features


class Cosines(nn.Module):
    """Cosines (N,K) of the embedding to the unit vectors *directions* (K,d); the unit embedding without any."""

    def __init__(self, embedding: nn.Module, directions: Tensor | None = None) -> None:
        super().__init__()
        self.embedding = embedding
        self.directions = directions
        self.training = embedding.training

    def forward(self, images: Tensor) -> Tensor:
        unit = F.normalize(self.embedding(images), dim=1)
        return unit if self.directions is None else unit @ self.directions.T


def embedding(batch: Batch) -> nn.Module:
    """The network from images to the features (N,d) that class scores are read from.

    ``model.embed`` where the model has one, else the input of its last linear layer. Raises ValueError without either.
    """
    if "embedding" not in batch.kept:
        own = callable(getattr(batch.model, "embed", None))
        batch.kept["embedding"] = _Embedding(batch.model) if own else Features(batch.model, batch.images[:1])
    return batch.kept["embedding"]


def _reference(batch: Batch) -> tuple[Tensor, Tensor]:
    """Unit embeddings (M,d) and classes (M,) of the reference images."""
    if batch.reference is None:
        raise ValueError("this target compares with other images; give reference=, a tensor (M,C,H,W)")
    if "reference" not in batch.kept:
        network = Cosines(embedding(batch))
        with torch.no_grad():
            unit = torch.cat([network(part) for part in batch.reference.split(batch.at_once)])
        labels = batch.reference_labels
        batch.kept["reference"] = unit, batch.scores(batch.reference).argmax(1) if labels is None else labels
    return batch.kept["reference"]


def _no_class_is_missing(batch: Batch, labels: Tensor) -> None:
    absent = batch.targets[~torch.isin(batch.targets, labels)]
    if len(absent):
        raise ValueError(f"no reference image is of class {int(absent[0])}; give some of every class")


class Target(NamedTuple):
    """What may be asked: the network whose outputs (N,K) the score is made of, and their weights (N,K), given them."""

    network: Callable[[Batch], nn.Module]
    weights: Callable[[Batch, Tensor], Tensor]
    citation: str


def _of_class(batch: Batch, outputs: Tensor) -> Tensor:
    classes = outputs.shape[1]
    if len(batch.targets) and not 0 <= int(batch.targets.min()) <= int(batch.targets.max()) < classes:
        raise ValueError(f"targets must be classes from 0 to {classes - 1}, as many as the model scores")
    return F.one_hot(batch.targets, classes).to(outputs)


def _prototypes(batch: Batch) -> nn.Module:
    directions = getattr(batch.model, "prototypes", None)
    if directions is None:
        unit, labels = _reference(batch)
        _no_class_is_missing(batch, labels)
        directions = F.normalize(F.one_hot(labels).to(unit).T @ unit, dim=1)
    return Cosines(embedding(batch), directions)


def _corpus(batch: Batch, outputs: Tensor) -> Tensor:
    unit, labels = _reference(batch)
    _no_class_is_missing(batch, labels)
    same = (batch.targets[:, None] == labels).to(unit)
    if (same == 1).all(1).any():
        raise ValueError("corpus: all reference images are of one class, so there is no foil; give others too")
    return (same / same.sum(1, keepdim=True) - (1 - same) / (1 - same).sum(1, keepdim=True)) @ unit


TARGETS: dict[str, Target] = {
    # The class's score, as the read-out gives it.
    "class_score": Target(lambda batch: batch.model, _of_class, "Simonyan et al., ICLR workshop 2014"),
    # The cosine of the embedding to the class's prototype: `model.prototypes` (K,d), unit vectors, or the directions of
    # the classes' mean unit embeddings over the reference.
    "prototype": Target(_prototypes, _of_class, "Snell et al., NeurIPS 2017"),
    # The inner product of the embedding with itself held fixed (eq. 2): no class is asked about.
    "label_free": Target(embedding, lambda batch, outputs: outputs, "Crabbé & van der Schaar, ICML 2022"),
    # Mean cosine of the embedding to a corpus, the reference's images of the class, minus that to a foil, all others
    # (eq. 3).
    "corpus": Target(lambda batch: Cosines(embedding(batch)), _corpus, "Lin et al., ICLR 2023, arXiv 2210.00107"),
}

# Targets that ask the same whatever the class.
CLASSLESS = frozenset({"label_free"})


def ask(batch: Batch, target: str, passed: Forward | None = None) -> Question:
    """The question *target* of `TARGETS` about each image of *batch*; *passed*: the network's forward pass, if there.

    Raises ValueError where the question has no answer.
    """
    network = TARGETS[target].network(batch)
    with torch.no_grad():
        if passed is not None:
            outputs = passed.scores.detach()
        else:
            # Only the label-free question reads more of the outputs than how many there are.
            outputs = network(batch.images if target in CLASSLESS else batch.images[:1])
        return Question(batch, network, TARGETS[target].weights(batch, outputs))
