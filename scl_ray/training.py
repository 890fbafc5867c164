"""Train one trial: the loop, resumable after any epoch, for one process or several that train it together."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from scl_ray import backbones, distributed, early_stopping, objectives, readout
from scl_ray.augment import AUGMENTATIONS
from scl_ray.config import EarlyStopping, Training, Trial
from scl_ray.datasets import Dataset
from scl_ray.feed import Feed, Pixels, in_order, on_device

TRAINING_VERSION = 2

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
    dataset: Dataset,
    trial: Trial,
    *,
    device: str | torch.device = "cpu",
    state: State | None = None,
    comparable: bool = False,
) -> Iterator[tuple[dict[str, float], State]]:
    """Train *trial* on *dataset*; after each epoch yield its metrics and all that resuming needs.

    Metrics: ``epoch`` (from 1), ``loss`` (mean over the epoch), ``learning_rate`` (of its last step), ``seconds``,
    ``images_per_second`` (training images, however many views), ``validation_accuracy`` where the objective trains a
    classifier and, when *comparable*, ``validation_prototype_accuracy``, which means the same for every objective.
    *state* is an earlier yield's, saved by ``torch.save`` and loadable with ``weights_only=True``; a resumed run goes
    on as the uninterrupted one would, bit for bit on the CPU.

    Called in every process of a torch.distributed group, the processes train the trial together, each on its share of
    every batch, as one alone would but for rounding (and for what the network itself draws, such as dropout). Only the
    first one measures and yields a state; a state does not tell how many there were.

    Raises Diverged when the loss is not finite.
    """
    device = torch.device(device)
    training = trial.training
    rank, workers = distributed.rank_and_workers()
    network, objective = build(dataset, trial, device)
    trained = network if workers == 1 else distributed.shared(network, device)
    optimizer = _optimizer(network, training)
    first = 1
    if state is not None:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["epoch"] + 1

    feed = Feed(
        dataset,
        device,
        batch_size=training.batch_size,
        views=objective.views,
        augmentation=AUGMENTATIONS[training.augmentation],
        rank=rank,
        workers=workers,
    )
    steps = feed.steps
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bfloat16")
    rate = training.learning_rate

    for epoch in range(first, training.epochs + 1):
        started = time.perf_counter()
        network.train()
        losses = torch.empty(steps, device=device)
        with _randomness(trial.seed, epoch, device, rank) as generator:
            for step, (views, labels) in enumerate(feed.epoch(generator)):
                rate = learning_rate(training, (epoch - 1) * steps + step, steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                with autocast:
                    outputs = trained(views)
                outputs = distributed.whole(outputs.float(), objective.views)
                loss = objective.loss(outputs, distributed.whole(labels, objective.views))
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
            "images_per_second": steps * feed.batch_size / seconds,
        }
        if rank == 0:
            metrics |= _validation(network, objective, dataset, device, comparable)
        metrics["seconds"] = time.perf_counter() - started
        reached = {"epoch": epoch, "network": network.state_dict(), "optimizer": optimizer.state_dict()}
        yield metrics, _snapshot(reached) if rank == 0 else {}


def _validation(
    network: Network, objective: objectives.Objective, dataset: Dataset, device: torch.device, comparable: bool
) -> dict[str, float]:
    """The metrics of an epoch that validation images give."""
    is_classifier = objective.acts_on == "logits"
    if not (is_classifier or comparable):
        return {}
    metrics = {}
    found, labels = features(network.backbone, dataset, "validation", device), dataset.validation_labels
    if is_classifier:
        metrics["validation_accuracy"] = readout.accuracy(network.head(found).argmax(dim=1), labels)
    if comparable:
        classes = len(dataset.classes)
        metrics[EarlyStopping.MEASURE] = early_stopping.prototype_accuracy(found, on_device(labels, device), classes)
    return metrics


def learning_rate(training: Training, step: int, steps_per_epoch: int) -> float:
    """Learning rate of the optimiser's *step* (from 0): linear warm-up from a tenth, then a cosine to zero."""
    warmup, total = training.warmup_epochs * steps_per_epoch, training.epochs * steps_per_epoch
    if step < warmup:
        return training.learning_rate * (0.1 + 0.9 * step / warmup)
    return training.learning_rate * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


def build(dataset: Dataset, trial: Trial, device: torch.device) -> tuple[Network, objectives.Objective]:
    """The trial's untrained network, as its seed draws it, and its objective."""
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
def _randomness(seed: int, epoch: int, device: torch.device, rank: int = 0) -> Iterator[torch.Generator]:
    """Random numbers that the trial's seed and the epoch alone decide, so that no state of theirs need be saved.

    Yields a generator on the CPU, the same on every worker; whoever draws from torch's global one (dropout, some
    losses) is seeded too, on each worker differently, as their images differ. The caller's own random state is as
    before afterwards.
    """
    number, own = (
        int(np.random.SeedSequence(entropy).generate_state(1)[0])
        for entropy in ([seed, epoch], [seed, epoch, rank] if rank else [seed, epoch])
    )
    deterministic = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), deterministic:
        torch.manual_seed(own)
        yield torch.Generator().manual_seed(number)


@torch.no_grad()
def features(
    backbone: nn.Module, dataset: Dataset, split: Literal["train", "validation", "test"], device: torch.device
) -> Tensor:
    """Features (N, d) of a *split*'s images, in evaluation mode, not augmented."""
    backbone.eval()
    images = getattr(dataset, f"{split}_images")
    return torch.cat([backbone(batch) for batch in in_order(images, Pixels(dataset, device), device)])


def _snapshot(value: Any) -> Any:
    """A copy on the CPU that training on does not change."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _snapshot(item) for key, item in value.items()}
    return [_snapshot(item) for item in value] if isinstance(value, (list, tuple)) else value
