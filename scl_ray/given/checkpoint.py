"""A given classifier with what explaining it takes, and its two files, which lie where a trained trial's do."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safetensors.torch import load, save
from torch import Tensor, nn

from scl_ray.checkpoint import FORMAT, Protocol, identity
from scl_ray.given import weights


@dataclass(frozen=True, eq=False)
class GivenClassifier:
    """A network with its own read-out: the counterpart of `scl_ray.checkpoint.Checkpoint`.

    ``model``, called with ``arguments``, builds ``network``: normalised images (N, C, S, S) to class scores (N, K).
    ``classes`` names its K outputs. ``layer`` is the name of the module that CAMs explain, None to have it found.
    ``temperature`` divides the scores (fitted on validation images, Guo et al. 2017; 1 where there were none).
    ``mean`` and ``std`` normalise pixels in [0, 1], per channel.
    """

    model: str
    arguments: Mapping[str, Any]
    network: nn.Module
    layer: str | None
    temperature: float
    classes: tuple[str, ...]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def readout_name(self, protocol: Protocol) -> str:
        """The name under which its predictions are kept."""
        return "own_layer" if protocol == "corrected" else "own_layer_published"

    def explained(self, protocol: Protocol = "corrected") -> "ExplainedClassifier":
        """The network to explain, in evaluation mode; ``corrected``: its scores are divided by the temperature."""
        temperature = self.temperature if protocol == "corrected" else 1.0
        return ExplainedClassifier(self.network, self.layer, temperature).eval()


class ExplainedClassifier(nn.Module):
    """A given network whose class scores are divided by *temperature*."""

    def __init__(self, network: nn.Module, layer: str | None, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.layer = layer
        self.temperature = temperature

    @property
    def cam_layer(self) -> nn.Module | None:
        """The module that CAMs explain, or None to have it found by a forward pass."""
        return None if self.layer is None else self.network.get_submodule(self.layer)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images) / self.temperature


def to_files(classifier: GivenClassifier) -> dict[str, bytes]:
    """The classifier as ``{"weights.safetensors": …, "checkpoint.json": …}``; the weights under their own names."""
    # Copies, since tensors that share memory cannot be saved as they are.
    state = {name: tensor.detach().cpu().clone() for name, tensor in classifier.network.state_dict().items()}
    saved = save({name: tensor.contiguous() for name, tensor in state.items()})
    record = {
        "format": FORMAT,
        "model": classifier.model,
        "arguments": dict(classifier.arguments),
        "layer": classifier.layer,
        "classes": list(classifier.classes),
        "image_size": classifier.image_size,
        "mean": list(classifier.mean),
        "std": list(classifier.std),
        "temperature": classifier.temperature,
        **identity(saved),
    }
    return {
        "weights.safetensors": saved,
        "checkpoint.json": (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode(),
    }


def from_files(files: Mapping[str, bytes]) -> GivenClassifier:
    """The classifier that `to_files` wrote. A model of the user's own must be importable by its name.

    Raises ValueError when weights and model do not belong together.
    """
    record = json.loads(files["checkpoint.json"])
    network = weights.build(record["model"], record["arguments"])
    if problem := weights.load_into(network, load(files["weights.safetensors"])):
        raise ValueError(f"weights.safetensors: does not fit {record['model']}: {problem}")
    return GivenClassifier(
        model=record["model"],
        arguments=record["arguments"],
        network=network.eval(),
        layer=record["layer"],
        temperature=record["temperature"],
        classes=tuple(record["classes"]),
        image_size=record["image_size"],
        mean=tuple(record["mean"]),
        std=tuple(record["std"]),
    )
