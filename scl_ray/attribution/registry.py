"""From a spec to an entry of a registry, or to the user's own ``module:callable``, with its parameters checked."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from scl_ray import plugins, specs


class Parameter(NamedTuple):
    """A parameter's default, whether a value is valid, and what a valid value is, in words."""

    default: Any
    is_valid: Callable[[Any], bool]
    valid: str


class Entry(Protocol):
    """What any registered method or metric has."""

    @property
    def parameters(self) -> Mapping[str, Parameter]: ...


E = TypeVar("E", bound=Entry)


class Resolved(NamedTuple, Generic[E]):
    """A spec in its canonical form, its entry, and the value of every parameter, defaults included."""

    spec: str
    entry: E
    parameters: dict[str, Any]


def one_of(*values: str) -> Parameter:
    """One of the given strings; the first is the default."""
    return Parameter(values[0], values.__contains__, " or ".join(values))


def positive_integer(default: int | None) -> Parameter:
    """An integer of at least 1, or none where that is the default."""
    return Parameter(
        default,
        lambda value: value is default or (isinstance(value, int) and not isinstance(value, bool) and value >= 1),
        "a whole number of at least 1",
    )


def positive_number(default: float) -> Parameter:
    return Parameter(
        default,
        lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf"),
        "a number above 0",
    )


# "published" is the study as its authors ran it, "corrected" the same without what makes it fragile.
PROTOCOL = one_of("corrected", "published")

# What is explained: a name of `scl_ray.attribution.TARGETS`.
TARGET = one_of("class_score", "prototype", "label_free", "corpus")

# Of passes without gradients, the only ones that are worth less than float32.
PRECISION = one_of("float32", "bfloat16")


def resolve(
    spec: str,
    registry: Mapping[str, E],
    kind: str,
    of_callable: Callable[[Callable[..., Any]], E],
    parameters: Mapping[str, Any],
) -> Resolved[E]:
    """The entry that *spec* names and its parameters: those of the spec, then *parameters*, over the defaults.

    Raises ValueError, in one sentence, for an unknown name or parameter and for a value that is not valid.
    """
    name, written = specs.parse(spec)
    if plugins.is_plugin(name):
        entry = of_callable(plugins.load(name))
    elif name in registry:
        entry = registry[name]
    else:
        raise ValueError(f"there is no {kind} {name!r}; {_suggestion(name, registry)}")
    values = defaults(entry) | written | dict(parameters)
    for key, value in values.items():
        if key not in entry.parameters:
            raise ValueError(f"{name} has no parameter {key!r}; {_suggestion(key, entry.parameters)}")
        if not entry.parameters[key].is_valid(value):
            raise ValueError(f"{name}: {key} must be {entry.parameters[key].valid}, not {value!r}")
    return Resolved(specs.canonical(name, values, defaults(entry)), entry, values)


def defaults(entry: Entry) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in entry.parameters.items()}


def parameters_of(function: Callable[..., Any], given: int) -> dict[str, Parameter]:
    """The parameters of a user's function beyond the *given* first ones, which the caller fills in.

    ``protocol`` is always one, since it decides which network is explained. Raises ValueError for one without default.
    """
    found = {"protocol": PROTOCOL}
    for parameter in list(inspect.signature(function).parameters.values())[given:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.default is parameter.empty:
            raise ValueError(f"{function.__module__}:{function.__qualname__}: give {parameter.name} a default value")
        if parameter.name != "protocol":
            found[parameter.name] = Parameter(parameter.default, lambda value: True, "any value")
    return found


def accepted(function: Callable[..., Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """*parameters* as a user's function takes them: without ``protocol`` unless it asks for it."""
    takes_protocol = "protocol" in inspect.signature(function).parameters
    return {key: value for key, value in parameters.items() if key != "protocol" or takes_protocol}


def _suggestion(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(known)}"
