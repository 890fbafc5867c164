"""Parts of the user's own, named ``module:callable``: found, hashed and carried to the workers as source.

A user's module usually lies beside the configuration, where no worker can import it. Its source therefore travels with
the task and its hash enters the identity of what it computes: an edited objective is another objective.
"""

import hashlib
import importlib
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any


def is_plugin(name: str) -> bool:
    """Whether *name* has the form ``module:callable``."""
    module, separator, attribute = name.partition(":")
    return bool(separator) and all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")])


def load(name: str) -> Callable[..., Any]:
    """The callable that ``module:callable`` names. Raises ValueError, in one sentence, when there is none."""
    module_name, _, attribute = name.partition(":")
    try:
        part: Any = importlib.import_module(module_name)
        for piece in attribute.split("."):
            part = getattr(part, piece)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise ValueError(f"{name}: cannot be imported ({error}); write module:callable and put the module beside "
                         "the configuration or on PYTHONPATH") from error  # fmt: skip
    if not callable(part):
        raise ValueError(f"{name}: is not callable")
    return part


def source_hash(name: str) -> str:
    """First 12 hex digits of the SHA-256 of the source that ``module:callable`` lives in (all its package's files)."""
    load(name)
    digest = hashlib.sha256()
    for path, text in sorted(_sources(name.partition(":")[0]).items()):
        digest.update(f"{path}\0{text}\0".encode())
    return digest.hexdigest()[:12]


def bundle(names: Iterable[str]) -> dict[str, str]:
    """The sources (relative path to text) of the given ``module:callable`` names, for `install` on another machine.

    Installed libraries are not carried: every node has them.
    """
    sources: dict[str, str] = {}
    for name in names:
        load(name)
        module = name.partition(":")[0]
        if not _is_library(_origin(module)):
            sources |= _sources(module)
    return sources


def install(sources: Mapping[str, str], folder: Path) -> None:
    """Write a `bundle` below *folder* and put it first on the import path.

    Modules of an earlier bundle are forgotten, since a warm worker may have served another sweep's.
    """
    if not sources:
        return
    digest = hashlib.sha256(repr(sorted(sources.items())).encode()).hexdigest()[:12]
    root = folder / f"scl_ray_plugins_{digest}"
    if sys.path[0] != str(root):
        for path, text in sources.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            # Several workers of a node may write the same bytes; a rename shows each reader a whole file.
            partial = root / f"{path}.{os.getpid()}.partial"
            partial.write_text(text)
            partial.replace(root / path)
        sys.path.insert(0, str(root))
        importlib.invalidate_caches()
        tops = {Path(path).parts[0].removesuffix(".py") for path in sources}
        for module in [m for m in sys.modules if m.partition(".")[0] in tops]:
            del sys.modules[module]


def _origin(module: str) -> Path:
    loaded: ModuleType = sys.modules[module]
    if not loaded.__file__:
        raise ValueError(f"{module}: has no source file, so it cannot be carried to the workers")
    return Path(loaded.__file__)


def _is_library(path: Path) -> bool:
    libraries = {Path(sysconfig.get_path(key)).resolve() for key in ("stdlib", "purelib", "platlib")}
    return any(library in path.resolve().parents for library in libraries)


def _sources(module: str) -> dict[str, str]:
    path = _origin(module)
    top = module.partition(".")[0]
    if "." not in module and path.name != "__init__.py":
        return {f"{top}.py": path.read_text()}
    package = next((parent for parent in path.parents if parent.name == top), None)
    if package is None or _is_library(path):
        return {path.name: path.read_text()}
    return {str(file.relative_to(package.parent)): file.read_text() for file in sorted(package.rglob("*.py"))}
