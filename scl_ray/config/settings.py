"""What every model of the configuration rests on: settings that know their keys, names that are looked up, identity."""

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from scl_ray import plugins

RESERVED = ("mlflow.db", "mlartifacts")  # what MLflow's default has beside the sweeps' folders


class InputError(ValueError):
    """A bad input. Its message is one sentence that names the file, the key and what would be right."""


def _free(name: str) -> str:
    if name in RESERVED:
        raise ValueError(f"{name!r} is where MLflow keeps its own beside the sweeps; choose another name")
    return name


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100), AfterValidator(_free)]


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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


def known_name(kind: str, name: str, registry: Mapping[str, Any], plugin: bool = True) -> str:
    if plugin and plugins.is_plugin(name):
        plugins.load(name)
    elif name not in registry:
        raise ValueError(f"there is no {kind} {name!r}{hint(name, registry)}")
    return name


def hint(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; choose from {', '.join(known)}"


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def unique(values: Iterable[Any]) -> list[Any]:
    seen: list[Any] = []
    for value in values:
        if value not in seen:
            seen.append(value)
    return seen
