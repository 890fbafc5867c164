"""Parts of the user's own: found, hashed, carried."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scl_ray import plugins


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's module that is importable here."""
    path = tmp_path / "users_own_part.py"
    path.write_text("def double(x):\n    return 2 * x\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "users_own_part", raising=False)
    yield path
    sys.modules.pop("users_own_part", None)


def test_names() -> None:
    assert plugins.is_plugin("package.module:callable")
    assert not plugins.is_plugin("grad_cam")
    assert not plugins.is_plugin("quantus:")
    assert not plugins.is_plugin("s3://bucket")


def test_load(module: Path) -> None:
    assert plugins.load("users_own_part:double")(4) == 8


@pytest.mark.parametrize("name", ["no_such_module_here:f", "users_own_part:absent", "string:digits", "math:sqrt"])
def test_load_refuses_in_one_sentence(name: str, module: Path) -> None:
    with pytest.raises(ValueError, match=name.partition(":")[0]) as caught:
        plugins.load(name)
    assert "\n" not in str(caught.value)


def test_an_edited_source_has_another_hash(module: Path) -> None:
    before = plugins.source_hash("users_own_part:double")
    assert before == plugins.source_hash("users_own_part:double")
    module.write_text("def double(x):\n    return x + x\n")
    assert plugins.source_hash("users_own_part:double") != before


def test_the_whole_package_is_hashed_and_carried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "users_package" / "inner"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "losses.py").write_text(
        "from users_package.inner.distance import d\n\ndef loss(a, b):\n    return d(a, b)\n"
    )
    (package / "distance.py").write_text("def d(a, b):\n    return abs(a - b)\n")
    monkeypatch.syspath_prepend(tmp_path)
    name = "users_package.inner.losses:loss"
    before = plugins.source_hash(name)
    assert set(plugins.bundle([name])) == {
        "users_package/__init__.py", "users_package/inner/__init__.py",
        "users_package/inner/losses.py", "users_package/inner/distance.py",
    }  # fmt: skip
    (package / "distance.py").write_text("def d(a, b):\n    return (a - b) ** 2\n")
    assert plugins.source_hash(name) != before
    for loaded in [m for m in sys.modules if m.startswith("users_package")]:
        del sys.modules[loaded]


def test_installed_libraries_are_not_carried() -> None:
    assert plugins.bundle(["torchvision.models:resnet18", "json:dumps"]) == {}


def test_a_bundle_works_where_the_module_is_not(module: Path, tmp_path: Path) -> None:
    sources = plugins.bundle(["users_own_part:double"])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    script = (
        f"from scl_ray import plugins; plugins.install({sources!r}); "
        "print(plugins.load('users_own_part:double')(21)); "
        "plugins.install({'users_own_part.py': 'def double(x):\\n    return x + x + 1\\n'}); "
        "print(plugins.load('users_own_part:double')(21))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=elsewhere,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.stdout.split() == ["42", "43"]


def test_a_module_that_fails_on_import_is_refused(module: Path) -> None:
    module.write_text("this_name_is_not_defined\n")
    with pytest.raises(ValueError, match="users_own_part:double: cannot be imported .NameError"):
        plugins.load("users_own_part:double")


def test_what_a_module_imports_from_its_folder_belongs_to_it(module: Path) -> None:
    module.with_name("beside_it.py").write_text("FACTOR = 2\n")
    module.with_name("not_imported.py").write_text("OTHER = 1\n")
    module.write_text("from beside_it import FACTOR\n\ndef double(x):\n    return FACTOR * x\n")
    before = plugins.source_hash("users_own_part:double")
    assert set(plugins.bundle(["users_own_part:double"])) == {"users_own_part.py", "beside_it.py"}
    module.with_name("beside_it.py").write_text("FACTOR = 3\n")
    assert plugins.source_hash("users_own_part:double") != before
    sys.modules.pop("beside_it")
