"""Specs: a name and the parameters that differ from its defaults, as one canonical string.

``ssim_continuity[noise=0.1]`` names the metric ``ssim_continuity`` at noise 0.1. The same spec is written in one way
only, so it can be compared, hashed and used as a column value.
"""

import json
import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

Scalar = str | int | float | bool | None

_SPEC = re.compile(r"(?P<name>[^\[\]\s]+)(?:\[(?P<parameters>[^\[\]]*)\])?")


def parse(spec: str) -> tuple[str, dict[str, Scalar]]:
    """``a[b=1,c=x]`` to ``("a", {"b": 1, "c": "x"})``. Raises ValueError when the text is not a spec."""
    match = _SPEC.fullmatch(spec.strip())
    if match is None:
        raise ValueError(f"{spec!r} is not a spec; write name or name[parameter=value,...]")
    parameters: dict[str, Scalar] = {}
    for item in filter(None, (match["parameters"] or "").split(",")):
        key, separator, value = item.partition("=")
        if not separator or not key.strip():
            raise ValueError(f"{item!r} in {spec!r} is not parameter=value")
        parameters[key.strip()] = _scalar(value.strip())
    return match["name"], parameters


def canonical(name: str, parameters: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """The one way to write a spec: parameters equal to their default are left out, the others sorted by name."""
    kept = {key: value for key, value in parameters.items() if key not in defaults or not _same(value, defaults[key])}
    if not kept:
        return name
    return f"{name}[{','.join(f'{key}={_text(kept[key])}' for key in sorted(kept))}]"


def expand(parameters: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every combination of the values of *parameters*, where a list is an axis and anything else a single value.

    Raises ValueError for an empty list.
    """
    for key, value in parameters.items():
        if isinstance(value, (list, tuple)) and not value:
            raise ValueError(f"{key}: is an empty list; give at least one value or leave it out")
    axes = [value if isinstance(value, (list, tuple)) else [value] for value in parameters.values()]
    for values in product(*axes):
        yield dict(zip(parameters, values, strict=True))


def tracking_name(spec: str) -> str:
    """The spec as MLflow allows it in a metric's name: ``a[b=1,c=x]`` becomes ``a:b:1:c:x``."""
    return re.sub(r"[^\w:./ -]", "_", re.sub(r"[\[=,]", ":", spec).rstrip("]"))


def _scalar(text: str) -> Scalar:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return value if isinstance(value, (str, int, float, bool, type(None))) else text


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str):
        if re.search(r"[\[\],=\s]", value):
            raise ValueError(f"{value!r} cannot stand in a spec; leave out spaces, brackets, commas and =")
        if value and _scalar(value) == value:
            return value
    return json.dumps(value)


def _same(value: Any, default: Any) -> bool:
    # 1 and 1.0 are the same value of a parameter, 1 and True are not.
    return value == default and isinstance(value, bool) == isinstance(default, bool)
