"""Parts of the user's own, named ``module:callable``: found, hashed and carried to the workers as source.

A user's module usually lies beside the configuration, where no worker can import it. Its source therefore travels with
the task and its hash enters the identity of what it computes: an edited objective is another objective.
"""

import ast
import hashlib
import importlib
import os
import sys
import sysconfig
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any


def is_plugin(name: str) -> bool:
    """Whether *name* has the form ``module:callable``.

    ``quantus:ClassName`` is a metric of Quantus and ``timm:model`` a backbone of timm, and neither is a plugin.
    """
    module, separator, attribute = name.partition(":")
    return (
        bool(separator)
        and module not in ("quantus", "timm")
        and all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")])
    )


def load(name: str) -> Callable[..., Any]:
    """The callable that ``module:callable`` names. Raises ValueError, in one sentence, when there is none."""
    module_name, _, attribute = name.partition(":")
    fix = "write module:callable and put the module in the current folder or on PYTHONPATH"
    try:
        part: Any = importlib.import_module(module_name)
        for piece in attribute.split("."):
            part = getattr(part, piece)
    except Exception as error:  # a user's module may raise anything while it is imported
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{name}: cannot be imported ({reason}); {fix}") from error
    if not callable(part):
        raise ValueError(f"{name}: is not callable; {fix}")
    _origin(module_name)
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


def install(sources: Mapping[str, str]) -> None:
    """Write a `bundle` to a folder of this user's and put it first on the import path.

    Modules of an earlier bundle are forgotten, since a warm worker may have served another sweep's.
    """
    if not sources:
        return
    digest = hashlib.sha256(repr(sorted(sources.items())).encode()).hexdigest()[:12]
    own = Path(tempfile.gettempdir(), f"scl_ray-{os.getuid()}")
    own.mkdir(mode=0o700, exist_ok=True)
    if own.stat().st_uid != os.getuid():
        raise PermissionError(f"{own} belongs to another user, so code cannot be put there")
    root = own / digest
    if sys.path[0] == str(root):
        return
    for path, text in sources.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        # Several workers of a node may write the same bytes; a rename shows each reader a whole file.
        partial = root / f"{path}.{uuid.uuid4().hex}.partial"
        partial.write_text(text)
        partial.replace(root / path)
    sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    tops = {Path(path).parts[0].removesuffix(".py") for path in sources}
    for module in [m for m in sys.modules if m.partition(".")[0] in tops]:
        del sys.modules[module]


def _origin(module: str) -> Path:
    loaded: ModuleType = sys.modules[module]
    file = getattr(loaded, "__file__", None)
    if not file or not file.endswith(".py"):
        raise ValueError(f"{module}: has no Python source, so it can be neither hashed nor carried to the workers")
    return Path(file)


def _is_library(path: Path) -> bool:
    libraries = {Path(sysconfig.get_path(key)).resolve() for key in ("stdlib", "purelib", "platlib")}
    return any(library in path.resolve().parents for library in libraries)


def _sources(module: str) -> dict[str, str]:
    """The files that *module* is made of: its package, or the file and what it imports from its own folder."""
    path = _origin(module)
    top = module.partition(".")[0]
    package = next((parent for parent in path.parents if parent.name == top), None)
    if "." in module or path.name == "__init__.py":
        if package is None or _is_library(path):
            return {path.name: path.read_text()}
        return {str(file.relative_to(package.parent)): file.read_text() for file in sorted(package.rglob("*.py"))}
    found: dict[str, str] = {}
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file.name not in found:
            found[file.name] = file.read_text()
            beside = {path.parent / f"{name.partition('.')[0]}.py" for name in _imported(found[file.name])}
            waiting += sorted(other for other in beside if other.exists() and not _is_library(other))
    return found


def _imported(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
