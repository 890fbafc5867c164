"""What a network that was trained elsewhere is, an evaluation of several, and what a command asks for."""

from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from scl_ray.config import DatasetConfig, Evaluation, Name, Settings, digest

VERSION = 1  # raised when what is made of the same weights changes

Label = Annotated[str, Field(min_length=1, max_length=100)]


class Network(Settings):
    """A trained classifier: what beside its weights decides the scores of its explanations.

    ``label`` names it in tables and figures; of several with the same label, ``seed`` counts them. ``model`` is the
    ``module:callable`` that builds it, called with ``arguments``; ``code`` hashes the user's own source behind it and
    ``weights`` all its tensors. ``layer`` is the module that CAMs explain, found by itself where it is None.
    ``outputs`` has, for each class of the dataset, the number of the model's output; ``mean`` and ``std`` normalise
    pixels in [0, 1], per channel.
    """

    label: Label
    seed: Annotated[int, Field(ge=0)] = 0
    dataset: str
    fingerprint: str
    validation: float
    image_size: int
    model: str
    arguments: dict[str, Any]
    code: str
    weights: str
    layer: str | None = None
    outputs: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    readout: ClassVar = "own_layer"

    @property
    def identity(self) -> str:
        """First 12 hex digits of the SHA-256 of weights, model and images: all but what only names it."""
        named = {"label", "seed", "dataset"}
        return digest({"version": VERSION, **self.model_dump(mode="json", exclude=named, exclude_defaults=True)})

    @property
    def objective_label(self) -> str:
        """What the report compares by."""
        return self.label

    @property
    def images(self) -> tuple[str, int, int, float]:
        """What networks share that are compared: the dataset's content, its images' side and channels, its split."""
        return self.fingerprint, self.image_size, len(self.mean), self.validation

    def configuration(self) -> dict[str, Any]:
        """What the trial's record says of it, under the names that a sweep's trial has.

        Networks of all kinds stand in one table, so they share one backbone, by which the report groups.
        """
        return {
            "dataset": {"name": self.dataset},
            "objective": {"name": self.label, "model": self.model},
            "backbone": "trained elsewhere",
            "seed": self.seed,
            "training": {},
            "network": self.model_dump(mode="json"),
        }


class Comparison(Settings):
    """Networks that are evaluated side by side, on the same images."""

    kind: ClassVar = "comparison"

    name: Name
    dataset: DatasetConfig
    networks: list[Network]
    evaluation: Evaluation


class Asked(Settings):
    """What a command asks for, by the names of its flags: networks by their weights, and what is measured on them.

    ``label`` names them in tables and figures: none, one for all, or one each. ``labels`` is the file that says which
    output stands for which class.
    """

    name: Name
    checkpoint: tuple[Path, ...]
    label: tuple[Label, ...]
    model: str
    layer: str | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    labels: Path | None
    dataset: DatasetConfig
    evaluation: Evaluation
