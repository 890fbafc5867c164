"""What a trained network becomes: a checkpoint with its read-out, and the measures of both."""

from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from scl_ray import readout, training
from scl_ray.checkpoint import Checkpoint
from scl_ray.config import Trial
from scl_ray.datasets import Dataset
from scl_ray.feed import on_device

SPLITS: tuple[Literal["train", "validation", "test"], ...] = ("train", "validation", "test")


def finish(
    dataset: Dataset, trial: Trial, state: training.State, *, device: str | torch.device = "cpu"
) -> tuple[Checkpoint, dict[str, float]]:
    """Drop what only training needed, fit and calibrate the read-out, and measure it.

    *state* is what `fit` yielded after the last epoch. Metrics, on test images and, with ``validation_`` before the
    name, on validation images: ``accuracy/own_layer`` (cross-entropy) or ``accuracy/linear_probe``,
    ``accuracy/prototype`` (nearest by cosine), ``accuracy/knn`` (cosine); and the fitted ``temperature``.

    Raises training.Diverged when the trained network's features are not finite.
    """
    device = torch.device(device)
    network, _ = training.build(dataset, trial, device)
    network.load_state_dict(state["network"])
    features = {split: training.features(network.backbone, dataset, split, device) for split in SPLITS}
    if not all(bool(values.isfinite().all()) for values in features.values()):
        # The last step's loss was finite, but the update it led to was not.
        raise training.Diverged(f"the features are not finite after epoch {state['epoch']}")
    labels = on_device(dataset.train_labels, device)
    classes = len(dataset.classes)
    kind: Literal["own_layer", "linear_probe"]
    if isinstance(network.head, nn.Linear):
        kind, weight, bias = "own_layer", network.head.weight.detach(), network.head.bias.detach()
    else:
        normalised = functional.normalize(features["train"], dim=1)
        kind, (weight, bias) = "linear_probe", readout.linear_probe(normalised, labels, classes)
    scores = readout.ReadOut(weight, bias, normalise=kind == "linear_probe")
    centres = readout.prototypes(features["train"], labels, classes)

    metrics = {}
    for split, prefix in (("test", ""), ("validation", "validation_")):
        own, truth = features[split], getattr(dataset, f"{split}_labels")
        votes = readout.nearest_neighbours(features["train"], labels, own, classes)
        # A prototype's cosine differs from this product by the feature's norm, which is the same for every class.
        nearest = (own @ centres.T).argmax(dim=1)
        metrics[f"{prefix}accuracy/{kind}"] = readout.accuracy(scores(own).argmax(dim=1), truth)
        metrics[f"{prefix}accuracy/prototype"] = readout.accuracy(nearest, truth)
        metrics[f"{prefix}accuracy/knn"] = readout.accuracy(votes, truth)
    metrics["temperature"] = readout.fit_temperature(
        scores(features["validation"]), torch.tensor(dataset.validation_labels)
    )
    checkpoint = Checkpoint(
        backbone_name=trial.backbone,
        backbone=network.backbone.cpu().to(memory_format=torch.contiguous_format).eval(),
        readout=kind,
        weight=weight.cpu(),
        bias=bias.cpu(),
        temperature=metrics["temperature"],
        prototypes=centres.cpu(),
        classes=dataset.classes,
        image_size=dataset.image_size,
        mean=dataset.mean,
        std=dataset.std,
    )
    return checkpoint, metrics
