"""What a sweep, a trial and an evaluation are; grid expansion; identity.

A sweep is a YAML file. Any axis of its grid may be a list; the grid expands to trials, and a trial's identity is a hash
of everything that decides its checkpoint and of nothing else.
"""

import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    FieldSerializationInfo,
    Tag,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from scl_ray import plugins, specs


class InputError(ValueError):
    """A bad input. Its message is one sentence that names the file, the key and what would be right."""


class Cell(NamedTuple):
    """One method scored by one metric, both as canonical specs."""

    method: str
    metric: str


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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

        return _known_name("dataset", name, DATASETS)


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

        return _known_name("augmentation", name, AUGMENTATIONS, plugin=False)


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
    parameters: dict[str, Any] = {}
    views: Literal[1, 2] = 1

    @model_validator(mode="after")
    def _exists(self) -> "MetricLearning":
        from scl_ray.objectives import check_metric_learning

        check_metric_learning(self.name, self.parameters)
        return self


class UserObjective(_Objective):
    """The user's own loss, ``module:callable``, called as ``loss(embeddings, labels, **parameters)``."""

    name: str
    parameters: dict[str, Any] = {}
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


_OBJECTIVES: dict[str, type[_Objective]] = {**BUILT_IN, "metric_learning": MetricLearning, "plugin": UserObjective}


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


class Grid(Settings):
    objective: Annotated[list[Objective], Field(min_length=1)]
    backbone: Annotated[list[str], Field(min_length=1)]
    seed: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, grid: Any) -> Any:
        if not isinstance(grid, Mapping):
            return grid
        grid = {key: value if isinstance(value, list) else [value] for key, value in grid.items()}
        if "objective" in grid:
            grid["objective"] = [point for entry in grid["objective"] for point in _objectives(entry)]
        return grid

    @field_validator("backbone")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        from scl_ray.backbones import BACKBONES, timm_models

        names = _unique(names)
        for name in names:
            if timm_models.is_timm(name):
                timm_models.check(name)
            else:
                _known_name("backbone", name, BACKBONES)
        return names

    @field_validator("objective", "seed")
    @classmethod
    def _once(cls, values: list[Any]) -> list[Any]:
        return _unique(values)


class Evaluation(Settings):
    """What is measured on each checkpoint: how many test images, which attribution methods, which metrics.

    ``methods`` and ``metrics`` hold canonical specs once validated; in YAML an entry is a name, a spec, or a mapping
    with ``name`` and parameters, where a list is an axis. ``protocol``, ``target`` (what is explained) and
    ``precision`` (of passes without gradients) are parameters of all entries that have them and do not say otherwise.
    """

    images: Annotated[int, Field(ge=1)] | None = None
    protocol: list[Literal["corrected", "published"]] = Field(default=["corrected"], min_length=1)
    target: list[Literal["class_score", "prototype", "label_free", "corpus"]] = Field(
        default=["class_score"], min_length=1
    )
    precision: Literal["float32", "bfloat16"] = "float32"
    methods: Annotated[list[str], Field(min_length=1)]
    metrics: Annotated[list[str], Field(min_length=1)]
    save_maps: bool = False

    @field_validator("protocol", "target", mode="before")
    @classmethod
    def _axis(cls, value: Any) -> Any:
        return _unique(_listed(value))

    @field_validator("methods", "metrics", mode="before")
    @classmethod
    def _specs(cls, value: Any, info: ValidationInfo) -> list[str]:
        resolve = _resolver(info.field_name)
        axes = {key: _listed(info.data[key]) for key in SHARED if key in info.data}
        points = [point for entry in _listed(value) for point in _points(entry, axes, resolve)]
        return _unique(resolve(name, **parameters).spec for name, parameters in points)

    @field_serializer("methods", "metrics")
    def _written(self, canonical: list[str], info: FieldSerializationInfo) -> list[str]:
        """The specs with what they share spelled out, as they would else take it from here when they are read again."""
        resolve = _resolver(info.field_name)
        changed = [key for key in SHARED if getattr(self, key) != type(self).model_fields[key].default]
        written = []
        for spec in canonical:
            known = _shared(resolve(spec).entry.parameters)
            values = {key: resolve(spec).parameters[key] for key in changed if key in known}
            name, parameters = specs.parse(spec)
            written.append(specs.canonical(name, {**parameters, **values}, {}))
        return written


# The parameters that entries of `Evaluation` share.
SHARED = ("protocol", "target", "precision")


class Slot(Settings):
    """What one task occupies. GPUs count only on a cluster that has any."""

    cpus: Annotated[int, Field(ge=1)] = 1
    gpus: Annotated[float, Field(ge=0)] = 1.0


class EvaluationSlot(Slot):
    """``memory``: GiB that an evaluation may take for its images, of the GPU where it has one; by default what is free
    is shared."""

    memory: Annotated[float, Field(gt=0)] | None = None


class Resources(Settings):
    train: Slot = Slot()
    evaluate: EvaluationSlot = EvaluationSlot(gpus=0.5)


class EarlyStopping(Settings):
    """Asynchronous successive halving, ASHA (Li et al. 2020): at the share ``grace_period`` of its epochs, and at
    ``reduction_factor`` times that, and so on, a trial goes on when it is among the best 1 / ``reduction_factor`` of
    those that came so far."""

    MEASURE: ClassVar = "validation_prototype_accuracy"  # by which they are compared; see early_stopping.py

    grace_period: Annotated[float, Field(gt=0, lt=1)] = 0.1
    reduction_factor: Annotated[float, Field(gt=1)] = 3.0


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]


class Sweep(Settings):
    kind: ClassVar = "sweep"

    name: Name
    dataset: DatasetConfig
    grid: Grid
    training: Training = Training()
    early_stopping: EarlyStopping | None = None
    evaluation: Evaluation
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _recipes(self) -> "Sweep":
        self.trials()
        return self

    def trials(self) -> list[Trial]:
        """The grid's trials: every objective with every backbone and seed, in the order of the configuration."""
        trials = []
        for objective in self.grid.objective:
            try:
                training = Training.model_validate(self.training.model_dump() | objective.training)
            except ValidationError as error:
                raise InputError(f"grid.objective.{objective.name}.training.{sentence(error, Training)}") from error
            bare = objective.model_copy(update={"training": {}})
            for backbone in self.grid.backbone:
                for seed in self.grid.seed:
                    trials.append(
                        Trial(dataset=self.dataset, objective=bare, backbone=backbone, seed=seed, training=training)
                    )
        return trials

    def plugin_names(self) -> list[str]:
        """Every ``module:callable`` that the sweep names."""
        evaluated = [specs.parse(spec)[0] for spec in [*self.evaluation.methods, *self.evaluation.metrics]]
        named = [o.name for o in self.grid.objective] + self.grid.backbone + [self.dataset.name] + evaluated
        return _unique(name for name in named if plugins.is_plugin(name))


def load(path: Path, overrides: Iterable[str] = (), name: str | None = None) -> Sweep:
    """Read a sweep from YAML. *overrides* are ``dotted.key=YAML``; *name* replaces the configuration's own.

    Raises InputError: one sentence with the file, the key and the fix.
    """
    try:
        settings = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a configuration with --config") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        line = f" at line {place.line + 1}" if place else ""
        raise InputError(f"{path}: is not valid YAML{line}; see sweeps/demo.yaml for an example") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path}: holds no settings; see sweeps/demo.yaml for an example")
    for override in overrides:
        _override(settings, override)
    if name is not None:
        settings["name"] = name
    try:
        return Sweep.model_validate(settings)
    except ValidationError as error:
        raise InputError(f"{path}: {sentence(error)}") from error


def digest(value: Any) -> str:
    """First 12 hex digits of the SHA-256 over the canonical JSON of *value*, in which 1.0 is 1."""
    canonical = json.dumps(_shortest(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _shortest(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _shortest(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shortest(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _override(settings: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    if not separator or not all(dotted.split(".")):
        raise InputError(f"--set {override}: write dotted.key=value, for example --set training.epochs=3")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--set {override}: {text!r} is not valid YAML") from error
    *folders, last = dotted.split(".")
    for folder in folders:
        settings = settings.setdefault(folder, {})
        if not isinstance(settings, dict):
            raise InputError(f"--set {override}: {folder} holds no keys; set it as a whole")
    settings[last] = value


def _objectives(entry: Any) -> Iterable[Any]:
    if isinstance(entry, str):
        entry = {"name": entry}
    if not isinstance(entry, Mapping):
        return [entry]
    # `training` overrides one recipe and `parameters` holds axes of its own; all else is an axis when it is a list.
    fixed = {key: value for key, value in entry.items() if key in ("name", "training")}
    axes = {key: value for key, value in entry.items() if key not in fixed and key != "parameters"}
    inner = entry.get("parameters")
    points = [{"parameters": p} for p in specs.expand(inner)] if isinstance(inner, Mapping) else [{}]
    if inner is not None and not isinstance(inner, Mapping):
        points = [{"parameters": inner}]
    return [fixed | point | extra for point in specs.expand(axes) for extra in points]


def _points(
    entry: Any, axes: Mapping[str, list[Any]], resolve: Callable[..., Any]
) -> Iterable[tuple[str, dict[str, Any]]]:
    if isinstance(entry, str):
        name, parameters = specs.parse(entry)
    elif isinstance(entry, Mapping) and isinstance(entry.get("name"), str):
        name, parameters = entry["name"], {key: value for key, value in entry.items() if key != "name"}
    else:
        raise ValueError(f"{entry!r} is neither a name, a spec nor a mapping with a name")
    protocols = axes.get("protocol", [])
    for protocol in _listed(parameters.get("protocol", protocols)):
        if protocol not in protocols:
            raise ValueError(f"{name}: protocol {protocol!r} is not one of evaluation.protocol; add it there")
    known = _shared(resolve(name).entry.parameters)
    taken = {key: values for key, values in axes.items() if key in known}
    return [(name, point) for point in specs.expand({**taken, **parameters})]


def _resolver(field: str | None) -> Callable[..., Any]:
    from scl_ray import attribution, metrics

    return attribution.resolve if field == "methods" else metrics.resolve


def _shared(parameters: Mapping[str, Any]) -> list[str]:
    """Which of an entry's *parameters* are those of `SHARED`; the user's own may have the same name."""
    from scl_ray.attribution.registry import PRECISION, PROTOCOL, TARGET

    return [
        key for key, meant in zip(SHARED, (PROTOCOL, TARGET, PRECISION), strict=True) if parameters.get(key) is meant
    ]


def _known_name(kind: str, name: str, registry: Mapping[str, Any], plugin: bool = True) -> str:
    if plugin and plugins.is_plugin(name):
        plugins.load(name)
    elif name not in registry:
        raise ValueError(f"there is no {kind} {name!r}{_hint(name, registry)}")
    return name


def _hint(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; choose from {', '.join(known)}"


def sentence(error: ValidationError, model: type[BaseModel] = Sweep) -> str:
    """The first thing wrong with a *model*, as one clause: ``key: what is wrong; what would be right``."""
    first = error.errors()[0]
    # Objectives were expanded before they were checked, so their numbers are not the configuration's.
    loc = [part for part in first["loc"] if part not in ("metric_learning", "plugin")]
    key = ".".join(str(part) for n, part in enumerate(loc) if not (isinstance(part, int) and loc[n - 1] == "objective"))
    match first["type"]:
        case "extra_forbidden":
            return f"{key}: unknown key{_hint(str(loc[-1]), _keys(model, first['loc'][:-1]))}"
        case "missing":
            return f"{key}: is missing"
        case "value_error":
            return f"{key}: {first['ctx']['error']}" if key else str(first["ctx"]["error"])
        case "too_short":
            return f"{key}: is empty; give at least one"
        case "model_type" | "dict_type" | "model_attributes_type":
            return f"{key}: must hold keys of its own, not {first['input']!r}"
        case "string_pattern_mismatch":
            return (f"{key}: must be made of letters, digits, dots, dashes and underscores, and begin with a letter or "
                    f"digit, not {first['input']!r}")  # fmt: skip
        case _:
            return f"{key}: {first['msg'].replace('Input ', '').replace('String ', '')}, not {first['input']!r}"


def _keys(model: Any, loc: Iterable[int | str]) -> Iterable[str]:
    """The keys that may stand at *loc* of a *model*'s YAML."""
    for part in loc:
        if part in _OBJECTIVES:
            model = _OBJECTIVES[str(part)]
        elif isinstance(part, str) and part != "objective":
            annotation = model.model_fields[part].annotation
            model = next((kind for kind in get_args(annotation) if hasattr(kind, "model_fields")), annotation)
    return list(model.model_fields)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _unique(values: Iterable[Any]) -> list[Any]:
    seen: list[Any] = []
    for value in values:
        if value not in seen:
            seen.append(value)
    return seen
