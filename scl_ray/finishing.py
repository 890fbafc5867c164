"""What a trained network becomes: a checkpoint with its read-out, and the measures of both."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from scl_ray import calibration, geometry, readout, training
from scl_ray.checkpoint import Checkpoint
from scl_ray.config import Trial
from scl_ray.datasets import Dataset
from scl_ray.feed import on_device
from scl_ray.precision import full_float32

Kind = Literal["own_layer", "linear_probe"]

SPLITS: tuple[Literal["train", "validation", "test"], ...] = ("train", "validation", "test")


def finish(
    dataset: Dataset, trial: Trial, state: training.State, *, device: str | torch.device = "cpu"
) -> tuple[Checkpoint, dict[str, float | None]]:
    """Drop what only training needed, fit and calibrate the read-out, and measure it and the features.

    *state* is what `fit` yielded after the last epoch. What is measured, and where, is in `measures.MEASURES`; what is
    said there of ``own_layer`` only cross-entropy has.

    Raises training.Diverged when the trained network's features are not finite.
    """
    device = torch.device(device)
    network, _ = training.build(dataset, trial, device)
    network.load_state_dict(state["network"])
    with full_float32(device):  # as these features are explained
        features: dict[str, Tensor] = {
            split: training.features(network.backbone, dataset, split, device) for split in SPLITS
        }
    if not all(bool(values.isfinite().all()) for values in features.values()):
        # The last step's loss was finite, but the update it led to was not.
        raise training.Diverged(f"the features are not finite after epoch {state['epoch']}")
    labels = {split: on_device(getattr(dataset, f"{split}_labels"), device) for split in SPLITS}
    classes = len(dataset.classes)
    normalised = functional.normalize(features["train"], dim=1)
    # Cross-entropy gets a probe too, though its own layer is explained: so there is one read-out to compare all by.
    probe = readout.ReadOut(*readout.linear_probe(normalised, labels["train"], classes), normalise=True)
    readouts: dict[Kind, readout.ReadOut] = {"linear_probe": probe}
    kind: Kind = "linear_probe"
    if isinstance(network.head, nn.Linear):
        kind, head = "own_layer", network.head
        readouts[kind] = readout.ReadOut(head.weight.detach(), head.bias.detach(), normalise=False)
    scores = readouts[kind]
    temperature = calibration.fit_temperature(scores(features["validation"]), labels["validation"])
    centres = readout.prototypes(features["train"], labels["train"], classes)

    measured: dict[str, float | None] = {"temperature": temperature}
    for split, prefix in (("test", ""), ("validation", "validation_")):
        predictions: dict[str, Tensor] = {
            name: layer(features[split]).argmax(dim=1) for name, layer in readouts.items()
        }
        # A prototype's cosine differs from this product by the feature's norm, which is the same for every class.
        predictions["prototype"] = (features[split] @ centres.T).argmax(dim=1)
        predictions["knn"] = readout.nearest_neighbours(features["train"], labels["train"], features[split], classes)
        for name, predicted in predictions.items():
            measured[f"{prefix}accuracy/{name}"] = readout.accuracy(predicted, getattr(dataset, f"{split}_labels"))
    measured |= _calibration(scores, temperature, features["test"], labels["test"])
    order = on_device(dataset.evaluation_order, device)
    clustering = geometry.clustering(features["test"][order], labels["test"][order])
    measured |= {f"geometry/{name}": value for name, value in clustering.items()}
    for name, layer in readouts.items():
        read, predicted = normalised if layer.normalise else features["train"], layer(features["train"]).argmax(dim=1)
        collapse = geometry.neural_collapse(read, labels["train"], layer.weight, predicted)
        measured |= {f"geometry/{measure}/{name}": value for measure, value in collapse.items()}
    checkpoint = Checkpoint(
        backbone_name=trial.backbone,
        backbone=network.backbone.cpu().to(memory_format=torch.contiguous_format).eval(),
        readout=kind,
        weight=scores.weight.cpu(),
        bias=scores.bias.cpu(),
        temperature=temperature,
        prototypes=centres.cpu(),
        classes=dataset.classes,
        image_size=dataset.image_size,
        mean=dataset.mean,
        std=dataset.std,
    )
    return checkpoint, measured


def _calibration(scores: readout.ReadOut, temperature: float, features: Tensor, labels: Tensor) -> dict[str, float]:
    """ECE and NLL of the read-out as it was fitted and as either protocol uses it."""
    fitted, published = scores(features), readout.ReadOut(scores.weight, scores.bias, normalise=False)(features)
    measured = {}
    for use, logits in {"": fitted, "_scaled": fitted / temperature, "_published": published}.items():
        measured[f"calibration/ece{use}"] = calibration.expected_calibration_error(logits, labels)
        measured[f"calibration/nll{use}"] = calibration.negative_log_likelihood(logits, labels)
    return measured
