"""Which output of a given network stands for which class of the dataset."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from scl_ray.config import InputError


class Outputs(NamedTuple):
    """For each class of the dataset the number of the network's output, and the names of all its outputs."""

    of_classes: tuple[int, ...]
    names: tuple[str, ...]


def outputs(classes: Sequence[str], count: int, path: Path | None) -> Outputs:
    """What the file at *path* says of a network with *count* outputs, or, without a file, the sorted *classes*.

    The file maps each class's name to the number of its output, or lists the outputs' names in their order: JSON, YAML,
    or text with a name a line. Raises InputError; without a file also when the numbers of classes and outputs differ.
    """
    if path is None:
        if len(classes) != count:
            raise InputError(f"--labels: cannot be known, since the network has {count} outputs and the dataset "
                             f"{len(classes)} classes; give a file that maps each class, such as {classes[0]!r}, to "
                             "the number of its output")  # fmt: skip
        return Outputs(tuple(range(count)), tuple(classes))
    numbers = _numbers(path)
    chosen = []
    for name in classes:
        if name not in numbers:
            raise InputError(f"--labels {path}: lacks the class {name!r}; give the number of its output")
        number = numbers[name]
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < count:
            raise InputError(f"--labels {path}: gives {number!r} for {name!r}; the outputs are 0 to {count - 1}")
        chosen.append(number)
    named = {number: name for name, number in reversed(numbers.items()) if isinstance(number, int)}
    # Of names that share an output, a class of the dataset comes first.
    named |= {number: name for name, number in zip(reversed(classes), reversed(chosen), strict=True)}
    return Outputs(tuple(chosen), tuple(named.get(number, f"output {number}") for number in range(count)))


def _numbers(path: Path) -> dict[str, Any]:
    """The number of each name. Raises InputError."""
    try:
        text = path.read_text()
        content = text.splitlines() if path.suffix == ".txt" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise InputError(f"--labels {path}: cannot be read ({reason}); give JSON, YAML or text") from error
    if isinstance(content, list):
        # The first of equal names counts.
        return {str(name).strip(): number for number, name in reversed(list(enumerate(content)))}
    if isinstance(content, Mapping):
        return {str(name): number for name, number in content.items()}
    raise InputError(f"--labels {path}: holds neither a mapping of class to output nor a list of the outputs' names")
