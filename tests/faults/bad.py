"""Parts of a sweep's own that raise, until the folder BAD holds ``mended``."""

import os
from pathlib import Path

import torch
from torch import Tensor, nn


class NoMargin(Exception):
    """Pickle can write it, and cannot read it again, as with many a class that takes more than its message."""

    def __init__(self, margin: str, least: float) -> None:
        super().__init__(f"no {margin} of at least {least}")


def backbone(image_size: int) -> nn.Module:
    """A backbone that cannot be built, ever."""
    raise LookupError(f"no width is known for {image_size} pixels")


def loss(embeddings: Tensor, labels: Tensor) -> Tensor:
    """How close embeddings lie to each other."""
    if not _is_mended():
        raise NoMargin("margin", 0.1)
    return torch.pdist(nn.functional.normalize(embeddings)).square().mul(-2).exp().mean().log()


def metric(model: nn.Module, images: Tensor, targets: Tensor, maps: Tensor) -> Tensor:
    """The largest value of a map; it cannot tell for a few images."""
    if len(images) < 20 and not _is_mended():
        raise ArithmeticError("too few images")
    return maps.flatten(1).amax(1)


def _is_mended() -> bool:
    return Path(os.environ["BAD"], "mended").exists()
