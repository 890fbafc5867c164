"""A trained network with what turns its features into class scores, and its two files.

``weights.safetensors`` holds the tensors, ``checkpoint.json`` the rest: enough to rebuild the explained network without
the sweep that trained it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from scl_ray import backbones
from scl_ray.readout import ReadOut

if TYPE_CHECKING:
    from scl_ray.given.checkpoint import GivenClassifier

Protocol = Literal["corrected", "published"]

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A backbone with one linear read-out.

    ``weight`` (K, d) and ``bias`` (K,) are cross-entropy's own layer or a linear probe on L2-normalised features;
    ``temperature`` divides their scores (fitted on validation images, Guo et al. 2017); ``prototypes`` (K, d) are
    unit vectors. ``mean`` and ``std`` normalise pixels in [0, 1], per channel.
    """

    backbone_name: str
    backbone: nn.Module
    readout: Literal["own_layer", "linear_probe"]
    weight: Tensor
    bias: Tensor
    temperature: float
    prototypes: Tensor
    classes: tuple[str, ...]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def readout_name(self, protocol: Protocol) -> str:
        """The name under which this read-out's predictions are kept: ``linear_probe``, ``linear_probe_published``, …"""
        return self.readout if protocol == "corrected" else f"{self.readout}_published"

    def explained(self, protocol: Protocol = "corrected") -> "ExplainedNetwork":
        """The network to explain, in evaluation mode: normalised images (N, 3, S, S) float32 to class scores (N, K).

        ``corrected``: the read-out on the kind of features it was trained on, its scores divided by the temperature.
        ``published``: scores as they are, and a probe on features that are not normalised, as Arrighi et al. (2026,
        arXiv 2604.22540) did on CIFAR-10.
        """
        corrected = protocol == "corrected"
        readout = ReadOut(
            self.weight,
            self.bias,
            normalise=corrected and self.readout == "linear_probe",
            temperature=self.temperature if corrected else 1.0,
        )
        return ExplainedNetwork(self.backbone, readout, self.prototypes).eval()


class ExplainedNetwork(nn.Module):
    """A backbone and its read-out: normalised images (N, 3, S, S) to class scores (N, K).

    ``prototypes`` (K, d) are unit vectors in the space of `embed`.
    """

    prototypes: Tensor

    def __init__(self, backbone: nn.Module, readout: ReadOut, prototypes: Tensor) -> None:
        super().__init__()
        self.backbone = backbone
        self.readout = readout
        self.register_buffer("prototypes", prototypes)

    @property
    def cam_layer(self) -> nn.Module | None:
        """Where class activation maps are taken, or None to have it found by a forward pass."""
        return backbones.cam_layer(self.backbone)

    @property
    def temperature(self) -> float:
        """What the read-out's scores are divided by."""
        return self.readout.temperature

    def embed(self, images: Tensor) -> Tensor:
        """The features (N, d) that the read-out reads."""
        return self.backbone(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.readout(self.embed(images))


def to_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The checkpoint as ``{"weights.safetensors": …, "checkpoint.json": …}``; equal checkpoints give equal bytes."""
    tensors = {f"backbone.{name}": tensor for name, tensor in checkpoint.backbone.state_dict().items()}
    tensors |= {"readout.weight": checkpoint.weight, "readout.bias": checkpoint.bias}
    tensors["prototypes"] = checkpoint.prototypes
    weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    record = {
        "format": FORMAT,
        "backbone": checkpoint.backbone_name,
        "classes": list(checkpoint.classes),
        "image_size": checkpoint.image_size,
        "mean": list(checkpoint.mean),
        "std": list(checkpoint.std),
        "readout": checkpoint.readout,
        "temperature": checkpoint.temperature,
        **identity(weights),
    }
    return {"weights.safetensors": weights, "checkpoint.json": (json.dumps(record, indent=2) + "\n").encode()}


def identity(weights: bytes) -> dict[str, object]:
    """What ``checkpoint.json`` says of the file of weights, by which a damaged one is found."""
    return {"weights_bytes": len(weights), "weights_sha256": hashlib.sha256(weights).hexdigest()}


def from_files(files: Mapping[str, bytes]) -> "Checkpoint | GivenClassifier":
    """The checkpoint that `to_files` wrote, here or for a given classifier. A backbone or model of the user's own must
    be importable by its name.

    Raises ValueError when the two files do not belong together.
    """
    record = json.loads(files["checkpoint.json"])
    if record["format"] != FORMAT:
        raise ValueError(f"checkpoint.json: has format {record['format']}, but this scl_ray reads format {FORMAT}; "
                         "upgrade scl_ray")  # fmt: skip
    if "model" in record:
        from scl_ray.given import checkpoint as given

        return given.from_files(files)
    tensors = load(files["weights.safetensors"])
    # Initial weights are drawn and thrown away; whoever loads a checkpoint keeps their own random numbers.
    with torch.random.fork_rng(devices=[]):
        backbone = backbones.build(record["backbone"], record["image_size"])
    try:
        backbone.load_state_dict(
            {name.removeprefix("backbone."): t for name, t in tensors.items() if name.startswith("backbone.")}
        )
    except RuntimeError as error:
        raise ValueError(f"weights.safetensors: does not fit the backbone {record['backbone']} ({error})") from error
    return Checkpoint(
        backbone_name=record["backbone"],
        backbone=backbone.eval(),
        readout=record["readout"],
        weight=tensors["readout.weight"],
        bias=tensors["readout.bias"],
        temperature=record["temperature"],
        prototypes=tensors["prototypes"],
        classes=tuple(record["classes"]),
        image_size=record["image_size"],
        mean=tuple(record["mean"]),
        std=tuple(record["std"]),
    )
