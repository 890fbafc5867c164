"""The usual training loop, to compare with: PIL transforms in a DataLoader's two workers, a plain float32 network."""

import time
from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

from scl_ray import training
from scl_ray.augment import AUGMENTATIONS, Augmentation
from scl_ray.config import Trial
from scl_ray.datasets import Dataset

WORKERS = 2


class Pictures(TorchDataset[tuple[Tensor, int]]):
    """Training images, each in *views* random versions (V, 3, S, S), and their labels."""

    def __init__(self, dataset: Dataset, augmentation: Augmentation, views: int) -> None:
        self.pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in dataset.train_images]
        self.labels, self.views = dataset.train_labels.tolist(), views
        self.transform = transforms.Compose([
            *_random(augmentation, dataset.image_size),
            transforms.ToTensor(),
            transforms.Normalize(dataset.mean, dataset.std),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.stack([self.transform(self.pictures[index]) for _ in range(self.views)]), self.labels[index]


def _random(augmentation: Augmentation, side: int) -> Iterator[torch.nn.Module]:
    """Torchvision's transforms of PIL images, for an *augmentation* of this project."""
    if augmentation.shift:
        yield transforms.RandomCrop(side, padding=round(augmentation.shift * side))
    if augmentation.area != (1.0, 1.0):
        yield transforms.RandomResizedCrop(side, scale=augmentation.area)
    if augmentation.flip:
        yield transforms.RandomHorizontalFlip()
    if augmentation.jitter:
        strengths = augmentation.brightness, augmentation.contrast, augmentation.saturation, augmentation.hue
        yield transforms.RandomApply([transforms.ColorJitter(*strengths)], p=augmentation.jitter)
    if augmentation.grey:
        yield transforms.RandomGrayscale(augmentation.grey)


def loop(dataset: Dataset, trial: Trial, device: torch.device) -> Iterator[float]:
    """Train as *trial* says, for ever; yield the mean seconds of a step after each epoch.

    The first step of an epoch does not count: it waits for the workers, as a long epoch does but once.
    """
    settings = trial.training
    network, objective = training.build(dataset, trial, device)
    network = network.to(memory_format=torch.contiguous_format).train()
    optimizer = torch.optim.SGD(
        network.parameters(), settings.learning_rate, settings.momentum, weight_decay=settings.weight_decay
    )
    # Workers live on from epoch to epoch: starting them is no part of a step.
    loader = DataLoader(
        Pictures(dataset, AUGMENTATIONS[settings.augmentation], objective.views), settings.batch_size,
        shuffle=True, drop_last=True, num_workers=WORKERS, persistent_workers=True, pin_memory=device.type == "cuda",
    )  # fmt: skip
    while True:
        ends = []
        for pictures, labels in loader:
            images = pictures.transpose(0, 1).flatten(0, 1).to(device, non_blocking=True)
            loss = objective.loss(network(images), labels.repeat(objective.views).to(device, non_blocking=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()  # for the running mean that such a loop shows
            ends.append(time.perf_counter())
        yield (ends[-1] - ends[0]) / (len(ends) - 1)
