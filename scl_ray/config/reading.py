"""A sweep read from its YAML."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from scl_ray.config.refusals import sentence
from scl_ray.config.settings import InputError
from scl_ray.config.sweep import Sweep


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
        raise InputError(f"{path}: {sentence(error, Sweep)}") from error


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
