"""What decides a checkpoint: data set, objective, backbone, seed and recipe; and the identity made of them."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from scl_ray import plugins
from scl_ray.config.settings import Settings, digest, known_name


class DatasetConfig(Settings):
    name: str
    root: str | None = None
    image_size: Annotated[int, Field(ge=8, le=1024)] | None = None
    download: bool = False
    validation: Annotated[float, Field(gt=0, lt=0.5)] = 0.1

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        from scl_ray.datasets import DATASETS

        return known_name("dataset", name, DATASETS)


class Training(Settings):
    epochs: Annotated[int, Field(ge=1)] = 200
    batch_size: Annotated[int, Field(ge=2)] = 128
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    optimizer: Literal["sgd", "adamw", "radam"] = "sgd"
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    augmentation: str = "crop_flip"
    precision: Literal["float32", "bfloat16"] = "float32"
    workers: Annotated[int, Field(ge=1)] = 1  # how many slots train one trial together, each its share of every batch

    @field_validator("workers")
    @classmethod
    def _share(cls, workers: int, info: ValidationInfo) -> int:
        batch_size = info.data.get("batch_size", workers)
        if batch_size % workers:
            raise ValueError(f"{workers} workers cannot share a batch of {batch_size} images equally; give a divisor "
                             "of batch_size, which is the batch of all workers together")  # fmt: skip
        return workers

    @field_validator("augmentation")
    @classmethod
    def _known(cls, name: str) -> str:
        from scl_ray.augment import AUGMENTATIONS

        return known_name("augmentation", name, AUGMENTATIONS, plugin=False)


class _Objective(Settings):
    training: dict[str, Any] = Field(default={}, description="what this objective's recipe changes in `training`")

    @property
    def parameters_by_name(self) -> dict[str, Any]:
        """The objective's own parameters, defaults included: ``{"temperature": 0.07}``."""
        own = self.model_dump(exclude={"name", "training", "views", "parameters"})
        return own | getattr(self, "parameters", {})

    @property
    def label(self) -> str:
        """The objective for people: ``supcon τ=0.07``."""
        symbols = {"temperature": "τ"}
        shown = [f"{symbols.get(key, key)}={value}" for key, value in self._varied().items()]
        return " ".join([self.name, *shown])  # type: ignore[attr-defined]  # every member of the union has a name

    def _varied(self) -> dict[str, Any]:
        shown = {key: value for key, value in self.parameters_by_name.items() if key in ("temperature", "margin")}
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        other = {k: v for k, v in self.parameters_by_name.items() if k not in shown and v != defaults.get(k)}
        return shown | other


class CrossEntropy(_Objective):
    name: Literal["cross_entropy"]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0


class SupCon(_Objective):
    name: Literal["supcon"]
    temperature: Annotated[float, Field(gt=0)] = 0.07


class Triplet(_Objective):
    name: Literal["triplet"]
    margin: Annotated[float, Field(ge=0)] = 0.3
    mining: Literal["semi_hard", "hard"] = "semi_hard"


class SimCLR(_Objective):
    name: Literal["simclr"]
    temperature: Annotated[float, Field(gt=0)] = 0.5


class MetricLearning(_Objective):
    """Any loss of pytorch-metric-learning, by its class name."""

    name: str
    parameters: dict[str, Any] = Field(default={})
    views: Literal[1, 2] = 1

    @model_validator(mode="after")
    def _exists(self) -> "MetricLearning":
        from scl_ray.objectives import check_metric_learning

        check_metric_learning(self.name, self.parameters)
        return self


class UserObjective(_Objective):
    """The user's own loss, ``module:callable``, called as ``loss(embeddings, labels, **parameters)``."""

    name: str
    parameters: dict[str, Any] = Field(default={})
    views: Literal[1, 2] = 1

    @field_validator("name")
    @classmethod
    def _loads(cls, name: str) -> str:
        plugins.load(name)
        return name


BUILT_IN: dict[str, type[_Objective]] = {
    "cross_entropy": CrossEntropy,
    "supcon": SupCon,
    "triplet": Triplet,
    "simclr": SimCLR,
}


OBJECTIVES: dict[str, type[_Objective]] = {**BUILT_IN, "metric_learning": MetricLearning, "plugin": UserObjective}


def _kind(value: Any) -> str:
    name = value.get("name", "") if isinstance(value, Mapping) else getattr(value, "name", "")
    if name in BUILT_IN:
        return str(name)
    return "plugin" if plugins.is_plugin(str(name)) else "metric_learning"


Objective = Annotated[
    Annotated[CrossEntropy, Tag("cross_entropy")]
    | Annotated[SupCon, Tag("supcon")]
    | Annotated[Triplet, Tag("triplet")]
    | Annotated[SimCLR, Tag("simclr")]
    | Annotated[MetricLearning, Tag("metric_learning")]
    | Annotated[UserObjective, Tag("plugin")],
    Discriminator(_kind),
]


class Trial(Settings):
    """One point of the grid: what `training.fit` needs beside the data."""

    dataset: DatasetConfig
    objective: Objective
    backbone: str
    seed: int
    training: Training

    def identity(self, fingerprint: str, image_size: int) -> str:
        """First 12 hex digits of the SHA-256 of all that decides the checkpoint.

        *fingerprint* is the dataset's content hash and *image_size* the side of its images in pixels. Settings at
        their defaults are left out, so a later setting does not change the identity of what is already trained.
        """
        from scl_ray.backbones import timm_models
        from scl_ray.training import TRAINING_VERSION

        named = (self.objective.name, self.backbone)
        return digest({
            "version": TRAINING_VERSION,
            "dataset": {"fingerprint": fingerprint, "image_size": image_size, "validation": self.dataset.validation},
            "objective": self.objective.model_dump(mode="json", exclude_defaults=True, exclude={"training"}),
            "backbone": self.backbone,
            "seed": self.seed,
            "training": self.training.model_dump(mode="json", exclude_defaults=True, exclude={"workers"}),
            "code": {name: plugins.source_hash(name) for name in named if plugins.is_plugin(name)}
            | timm_models.version(self.backbone),
        })  # fmt: skip

    @property
    def label(self) -> str:
        """The trial for people: ``supcon τ=0.07 · resnet18 · seed 0``."""
        return f"{self.objective_label} · {self.backbone} · seed {self.seed}"

    @property
    def objective_label(self) -> str:
        """The objective for people, which trials that differ in their seed share."""
        return self.objective.label

    @property
    def readout(self) -> str:
        """The read-out that is explained: cross-entropy's own layer, or a linear probe on the frozen features."""
        return "own_layer" if self.objective.name == "cross_entropy" else "linear_probe"

    def configuration(self) -> dict[str, Any]:
        """What the trial's record says of it."""
        return self.model_dump(mode="json", exclude={"objective": {"training"}, "training": {"workers"}})
