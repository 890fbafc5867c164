"""Train one trial: the loop, resumable after any epoch, and what turns its last state into a checkpoint."""

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from scl_ray import backbones, objectives, readout
from scl_ray.augment import AUGMENTATIONS, augment
from scl_ray.checkpoint import Checkpoint
from scl_ray.config import Training, Trial
from scl_ray.datasets import Dataset

TRAINING_VERSION = 1

State = dict[str, Any]


class Diverged(ArithmeticError):
    """The loss was not finite. The message says in which epoch and step."""


class Network(nn.Module):
    """What is trained: a backbone, the head its objective wants, and the objective's own weights."""

    def __init__(self, trial: Trial, objective: objectives.Objective, classes: int, image_size: int) -> None:
        super().__init__()
        self.backbone = backbones.build(trial.backbone, image_size)
        self.head = objectives.head(objective.acts_on, backbones.feature_size(self.backbone, image_size), classes)
        self.objective = objective.weights or nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.backbone(images))
        return outputs


def fit(
    dataset: Dataset, trial: Trial, *, device: str | torch.device = "cpu", state: State | None = None
) -> Iterator[tuple[dict[str, float], State]]:
    """Train *trial* on *dataset*; after each epoch yield its metrics and all that resuming needs.

    Metrics: ``epoch`` (from 1), ``loss`` (mean over the epoch), ``learning_rate`` (of its last step), ``seconds``,
    ``images_per_second`` (training images, however many views), and ``validation_accuracy`` where the objective
    trains a classifier. *state* is an earlier yield's, saved by ``torch.save`` and loadable with ``weights_only=True``;
    a resumed run goes on as the uninterrupted one would, bit for bit on the CPU.

    Raises Diverged when the loss is not finite.
    """
    device = torch.device(device)
    training = trial.training
    network, objective = _network(dataset, trial, device)
    optimizer = _optimizer(network, training)
    first = 1
    if state is not None:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["epoch"] + 1

    images, labels = _tensor(dataset.train_images, device), _tensor(dataset.train_labels, device)
    validation = _tensor(dataset.validation_images, device)
    pixels = Pixels(dataset, device)
    batch_size = min(training.batch_size, len(images))
    steps = len(images) // batch_size
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bfloat16")
    rate = training.learning_rate

    for epoch in range(first, training.epochs + 1):
        started = time.perf_counter()
        network.train()
        losses = torch.empty(steps, device=device)
        with _randomness(trial.seed, epoch, device) as generator:
            order = torch.randperm(len(images), generator=generator, device=device)
            for step in range(steps):
                rate = learning_rate(training, (epoch - 1) * steps + step, steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                batch = order[step * batch_size : (step + 1) * batch_size].repeat(objective.views)
                views = augment(images[batch].float() / 255, AUGMENTATIONS[training.augmentation], generator)
                with autocast:
                    outputs = network(pixels.normalised(views))
                loss = objective.loss(outputs.float(), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses[step] = loss.detach()
        # Read once an epoch: reading a loss at each step would stall the device at each step.
        finite = losses.isfinite()
        if not finite.all():
            raise Diverged(f"the loss is not finite in epoch {epoch}, step {int(finite.int().argmin()) + 1} of {steps}")
        seconds = time.perf_counter() - started
        metrics = {
            "epoch": epoch,
            "loss": float(losses.mean()),
            "learning_rate": rate,
            "images_per_second": steps * batch_size / seconds,
        }
        if objective.acts_on == "logits":
            scores = network.head(_features(network.backbone, validation, pixels))
            metrics["validation_accuracy"] = _accuracy(scores.argmax(dim=1), dataset.validation_labels)
        metrics["seconds"] = time.perf_counter() - started
        yield metrics, _snapshot({"epoch": epoch, "network": network.state_dict(), "optimizer": optimizer.state_dict()})


def finish(
    dataset: Dataset, trial: Trial, state: State, *, device: str | torch.device = "cpu"
) -> tuple[Checkpoint, dict[str, float]]:
    """Drop what only training needed, fit and calibrate the read-out, and measure it.

    *state* is what `fit` yielded after the last epoch. Metrics, on test images and, with ``validation_`` before the
    name, on validation images: ``accuracy/own_layer`` (cross-entropy) or ``accuracy/linear_probe``,
    ``accuracy/prototype`` (nearest by cosine), ``accuracy/knn`` (cosine); and the fitted ``temperature``.

    Raises Diverged when the trained network's features are not finite.
    """
    device = torch.device(device)
    network, _ = _network(dataset, trial, device)
    network.load_state_dict(state["network"])
    pixels = Pixels(dataset, device)
    features = {
        split: _features(network.backbone, _tensor(getattr(dataset, f"{split}_images"), device), pixels)
        for split in ("train", "validation", "test")
    }
    if not all(bool(values.isfinite().all()) for values in features.values()):
        # The last step's loss was finite, but the update it led to was not.
        raise Diverged(f"the features are not finite after epoch {state['epoch']}")
    labels = _tensor(dataset.train_labels, device)
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
        metrics[f"{prefix}accuracy/{kind}"] = _accuracy(scores(own).argmax(dim=1), truth)
        metrics[f"{prefix}accuracy/prototype"] = _accuracy(nearest, truth)
        metrics[f"{prefix}accuracy/knn"] = _accuracy(votes, truth)
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


def learning_rate(training: Training, step: int, steps_per_epoch: int) -> float:
    """Learning rate of the optimiser's *step* (from 0): linear warm-up from a tenth, then a cosine to zero."""
    warmup, total = training.warmup_epochs * steps_per_epoch, training.epochs * steps_per_epoch
    if step < warmup:
        return training.learning_rate * (0.1 + 0.9 * step / warmup)
    return training.learning_rate * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


class Pixels:
    """Pixels in [0, 1] to what the network sees, by the training split's mean and standard deviation."""

    def __init__(self, dataset: Dataset, device: torch.device) -> None:
        self.mean = torch.tensor(dataset.mean, device=device).view(-1, 1, 1)
        self.std = torch.tensor(dataset.std, device=device).view(-1, 1, 1)

    def normalised(self, images: Tensor) -> Tensor:
        # Channels last: convolutions and batch-norm run about 1.5 times as fast on a CPU.
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


def _network(dataset: Dataset, trial: Trial, device: torch.device) -> tuple[Network, objectives.Objective]:
    with _randomness(trial.seed, 0, device):
        objective = objectives.build(trial.objective, len(dataset.classes))
        network = Network(trial, objective, len(dataset.classes), dataset.image_size)
    return network.to(device).to(memory_format=torch.channels_last), objective


def _optimizer(network: Network, training: Training) -> torch.optim.Optimizer:
    weights, rate, decay = network.parameters(), training.learning_rate, training.weight_decay
    match training.optimizer:
        case "sgd":
            return torch.optim.SGD(weights, rate, momentum=training.momentum, weight_decay=decay, fused=True)
        case "adamw":
            return torch.optim.AdamW(weights, rate, weight_decay=decay, fused=True)
        case "radam":
            return torch.optim.RAdam(weights, rate, weight_decay=decay)


@contextmanager
def _randomness(seed: int, epoch: int, device: torch.device) -> Iterator[torch.Generator]:
    """Random numbers that the trial's seed and the epoch alone decide, so that no state of theirs need be saved.

    Yields a generator on *device*; whoever draws from torch's global one (dropout, some losses) is seeded too. The
    caller's own random state is as before afterwards.
    """
    number = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    deterministic = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), deterministic:
        torch.manual_seed(number)
        yield torch.Generator(device).manual_seed(number)


@torch.no_grad()
def _features(backbone: nn.Module, images: Tensor, pixels: Pixels) -> Tensor:
    """Features (N, d) of uint8 *images*, in evaluation mode, not augmented."""
    backbone.eval()
    return torch.cat([backbone(pixels.normalised(batch.float() / 255)) for batch in images.split(256)])


def _accuracy(predictions: Tensor, labels: NDArray[np.int64]) -> float:
    return float(np.mean(predictions.cpu().numpy() == labels))


def _tensor(array: NDArray[Any], device: torch.device) -> Tensor:
    """*array* on *device*, without a copy where it is there already."""
    with warnings.catch_warnings():
        # Ray's shared memory is read-only, and so is the use made of it here.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array).to(device)


def _snapshot(value: Any) -> Any:
    """A copy on the CPU that training on does not change."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _snapshot(item) for key, item in value.items()}
    return [_snapshot(item) for item in value] if isinstance(value, (list, tuple)) else value
