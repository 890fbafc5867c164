"""The images that are explained and scored together, and all that this depends on beside the method and the metric."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scl_ray.attribution import inference
from scl_ray.attribution.passes import FULL_BATCH, Forward
from scl_ray.attribution.seeding import generator

# What batches that share `Batch.kept` may differ in.
_OF_IMAGES = {"images", "targets", "image_ids", "masks", "passed", "at_once"}


@dataclass(frozen=True, eq=False)
class Batch:
    """What a method or a metric may read.

    model: any module in evaluation mode, from normalised images to class scores (N,K).
    images: (N,C,H,W) float32, normalised; targets: (N,) int64, the class explained; masks: (N,H,W) bool.
    layer: what CAMs explain; None: found by `scl_ray.attribution.layers.cam_layer`.
    mean, std: per channel, from pixels in [0,1] to the normalised space; without them images are pixels already.
    seed, image_ids: with a spec they decide what is drawn for an image; the ids default to the positions 0..N-1.
    reference, reference_labels: a fixed set of other images (M,C,H,W), normalised, and their classes (M,) int64;
      without labels they are the classes that the model predicts.
    at_once: how many images a pass of perturbed copies takes at most.
    passed: forward passes of the images that are there already, by target.
    kept: what was made of the model once, by name: other forms of it, what it makes of the reference. Batches that
      differ only in their images, with targets, image_ids, masks and passed, may share it,
      as long as the weights stay.
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
    reference_labels: Tensor | None = None
    masks: Tensor | None = None
    at_once: int = FULL_BATCH
    passed: Mapping[str, Forward] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)

    def but(self, **changed: object) -> "Batch":
        """This batch with other *images*, *targets*, or another *model*: what depends on them is forgotten."""
        if "model" in changed:
            changed = {"layer": None, **changed}
        if not changed.keys() <= _OF_IMAGES:
            changed = {"kept": {}, **changed}
        return dataclasses.replace(self, **{"passed": {}, **changed})  # type: ignore[arg-type]  # of mixed fields

    def generators(self, spec: str) -> list[np.random.Generator]:
        """One random stream an image, for the method or metric *spec*."""
        ids = range(len(self.images)) if self.image_ids is None else self.image_ids
        return [generator(self.seed, int(image_id), spec) for image_id in ids]

    def normal(self, spec: str, *shape: int) -> Tensor:
        """Standard normal numbers (N,*shape) float32, drawn for each image from its own stream."""
        drawn = [stream.standard_normal(shape, dtype=np.float32) for stream in self.generators(spec)]
        return torch.from_numpy(np.stack(drawn)).to(self.images.device)

    def to_pixels(self, images: Tensor) -> Tensor:
        return images * self._channels(self.std, 1.0) + self._channels(self.mean, 0.0)

    def from_pixels(self, pixels: Tensor) -> Tensor:
        return (pixels - self._channels(self.mean, 0.0)) / self._channels(self.std, 1.0)

    def scores(self, images: Tensor, precision: str = "float32") -> Tensor:
        """Class scores (M,K) float32 of any normalised *images* (M,C,H,W), without a graph, in passes of `at_once`.

        By the model's fastest form (`scl_ray.attribution.inference`), which is made once for all that share `kept`:
        for *precision* ``bfloat16`` at once, for ``float32`` when enough images have come for it to pay.
        """
        with torch.inference_mode():
            network = self._network(images, precision)
            return torch.cat([network(part).float() for part in images.split(self.at_once)])

    def _network(self, images: Tensor, precision: str) -> inference.Network:
        form, seen = f"{precision} form", "images seen"
        if form not in self.kept:
            self.kept[seen] = self.kept.get(seen, 0) + len(images)
            if precision == "float32" and self.kept[seen] < inference.WORTHWHILE:
                return self.model
            self.kept[form] = inference.build(self.model, images, precision)
        network: inference.Network = self.kept[form]
        return network

    def _channels(self, values: Sequence[float] | Tensor | None, default: float) -> Tensor:
        given = torch.as_tensor(default if values is None else values, dtype=torch.float32)
        return given.to(self.images.device).reshape(-1, 1, 1)
