"""What is measured on each checkpoint: images, methods and metrics, as canonical specs."""

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, FieldSerializationInfo, ValidationInfo, field_serializer, field_validator

from scl_ray import specs
from scl_ray.config.settings import Settings, listed, unique


class Cell(NamedTuple):
    """One method scored by one metric, both as canonical specs."""

    method: str
    metric: str


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
        return unique(listed(value))

    @field_validator("methods", "metrics", mode="before")
    @classmethod
    def _specs(cls, value: Any, info: ValidationInfo) -> list[str]:
        resolve = _resolver(info.field_name)
        axes = {key: listed(info.data[key]) for key in SHARED if key in info.data}
        points = [point for entry in listed(value) for point in _points(entry, axes, resolve)]
        return unique(resolve(name, **parameters).spec for name, parameters in points)

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
    for protocol in listed(parameters.get("protocol", protocols)):
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
