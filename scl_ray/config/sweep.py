"""A sweep: the grid that expands to trials, what is measured on each, and what its tasks occupy."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, ValidationError, field_validator, model_validator

from scl_ray import plugins, specs
from scl_ray.config.evaluation import Evaluation
from scl_ray.config.refusals import sentence
from scl_ray.config.settings import InputError, Name, Settings, known_name, unique
from scl_ray.config.trial import DatasetConfig, Objective, Training, Trial


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

        names = unique(names)
        for name in names:
            if timm_models.is_timm(name):
                timm_models.check(name)
            else:
                known_name("backbone", name, BACKBONES)
        return names

    @field_validator("objective", "seed")
    @classmethod
    def _once(cls, values: list[Any]) -> list[Any]:
        return unique(values)


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

    @staticmethod
    def share(epoch: int, epochs: int) -> float:
        """How much of its training a trial has behind it after *epoch* of *epochs*."""
        # A rounding error more, since 0.1 times 3 is more than 3 / 10.
        return epoch / epochs * (1 + 1e-12)


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
        return unique(name for name in named if plugins.is_plugin(name))


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
