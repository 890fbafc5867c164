"""A small real network trained on the digits, which lie in folders of PNG files: what a user brings."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from scl_ray import datasets
from scl_ray.config import DatasetConfig

SIZE = 16
MEAN, STD = (0.3, 0.31, 0.32), (0.4, 0.39, 0.38)

# The user's own module, which the tests write to a folder.
SOURCE = """
import torch
from torch import nn


def small(num_classes=4, channels=3):
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes),
    )


def grey():
    return small(10, channels=1)


class OutOfOrder(nn.Module):
    # Takes one image, and no more.
    def __init__(self):
        super().__init__()
        self.network = small(10)

    def forward(self, images):
        if len(images) > 1:
            raise RuntimeError("this network is out of order")
        return self.network(images)
"""


def write_digits(root: Path) -> None:
    """300 training and 60 test images below ``train/<class>/`` and ``test/<class>/``."""
    digits = datasets.load(DatasetConfig(name="digits", image_size=SIZE))
    test = digits.evaluation_order[:60]
    for split, images, labels in (
        ("train", digits.train_images[:300], digits.train_labels[:300]),
        ("test", digits.test_images[test], digits.test_labels[test]),
    ):
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = root / split / f"digit {label}" / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(path)


def read_images(folder: Path) -> tuple[Tensor, Tensor]:
    """The PNG files below a folder of classes: normalised images and labels, in the order of their paths."""
    paths = sorted(folder.glob("*/*.png"))
    classes = sorted({path.parent.name for path in paths})
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    images = torch.tensor(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std, torch.tensor([classes.index(path.parent.name) for path in paths])


def train(network: nn.Module, seed: int, epochs: int) -> nn.Module:
    """*network* after a few epochs on all the training digits."""
    digits = datasets.load(DatasetConfig(name="digits", image_size=SIZE))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    images = (torch.tensor(digits.train_images).float() / 255 - mean) / std
    labels = torch.tensor(digits.train_labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in network.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.reset_parameters()
        # SGD with momentum by hand: torch.optim takes seconds to import.
        speed = [torch.zeros_like(weight) for weight in network.parameters()]
        for _ in range(epochs):
            for batch in torch.randperm(len(images)).split(32):
                loss = functional.cross_entropy(network(images[batch]), labels[batch])
                gradients = torch.autograd.grad(loss, list(network.parameters()))
                with torch.no_grad():
                    for weight, step, gradient in zip(network.parameters(), speed, gradients, strict=True):
                        weight -= step.mul_(0.9).add_(gradient, alpha=0.05)
    return network.eval()


def save(network: nn.Module, path: Path) -> Path:
    save_file(network.state_dict(), path)
    return path
