"""The images that are scored together, and what explaining them again depends on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from scl_ray.attribution.passes import Forward
from scl_ray.attribution.seeding import generator


@dataclass(frozen=True)
class Batch:
    """What a metric may read beside the maps.

    images: (N,C,H,W) float32, normalised; targets: (N,) int64, the class explained; masks: (N,H,W) bool.
    mean, std: per channel, from pixels in [0,1] to the normalised space; without them images are pixels already.
    image_ids: who the images are, for seeding; by default their positions.
    passed: a forward pass of the images that serves all methods, where there is one.
    """

    model: nn.Module
    images: Tensor
    targets: Tensor
    layer: nn.Module | None = None
    mean: Sequence[float] | Tensor | None = None
    std: Sequence[float] | Tensor | None = None
    seed: int = 0
    image_ids: Sequence[int] | Tensor | None = None
    reference: Tensor | None = None
    masks: Tensor | None = None
    passed: Forward | None = None

    def generators(self, spec: str) -> list[np.random.Generator]:
        """One random stream an image, for the metric *spec*."""
        ids = range(len(self.images)) if self.image_ids is None else self.image_ids
        return [generator(self.seed, int(image_id), spec) for image_id in ids]

    def to_pixels(self, images: Tensor) -> Tensor:
        return images * self._channels(self.std, 1.0) + self._channels(self.mean, 0.0)

    def from_pixels(self, pixels: Tensor) -> Tensor:
        return (pixels - self._channels(self.mean, 0.0)) / self._channels(self.std, 1.0)

    def _channels(self, values: Sequence[float] | Tensor | None, default: float) -> Tensor:
        given = torch.as_tensor(default if values is None else values, dtype=torch.float32)
        return given.to(self.images.device).reshape(-1, 1, 1)
