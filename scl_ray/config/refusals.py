"""What is wrong with a configuration, in one sentence."""

from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from scl_ray.config.settings import hint
from scl_ray.config.trial import OBJECTIVES


def sentence(error: ValidationError, model: type[BaseModel]) -> str:
    """The first thing wrong with a *model*, as one clause: ``key: what is wrong; what would be right``."""
    first = error.errors()[0]
    # Objectives were expanded before they were checked, so their numbers are not the configuration's.
    loc = [part for part in first["loc"] if part not in ("metric_learning", "plugin")]
    key = ".".join(str(part) for n, part in enumerate(loc) if not (isinstance(part, int) and loc[n - 1] == "objective"))
    match first["type"]:
        case "extra_forbidden":
            return f"{key}: unknown key{hint(str(loc[-1]), _keys(model, first['loc'][:-1]))}"
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
        if part in OBJECTIVES:
            model = OBJECTIVES[str(part)]
        elif isinstance(part, str) and part != "objective":
            annotation = model.model_fields[part].annotation
            model = next((kind for kind in get_args(annotation) if hasattr(kind, "model_fields")), annotation)
    return list(model.model_fields)
