"""The image's lock is whole, and of the versions that the tests run with."""

import re

from conftest import ROOT


def _pins(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", (ROOT / lock).read_text(), re.MULTILINE))


def test_the_image_has_the_versions_that_the_tests_run_with() -> None:
    tested, served = _pins("requirements.lock"), _pins("requirements-server.lock")
    shared = tested.keys() & served.keys()
    assert len(shared) > 100
    assert {name: (tested[name], served[name]) for name in shared if tested[name] != served[name]} == {}


def test_the_image_has_what_a_server_needs_and_none_of_the_tests_tools() -> None:
    served = _pins("requirements-server.lock")
    assert {"torch", "ray", "mlflow", "flask-wtf", "psycopg-binary", "aiohttp-cors"} <= served.keys()
    assert not {"pytest", "moto", "mypy", "ruff", "kubernetes-validate"} & served.keys()


def test_every_line_of_a_lock_has_a_hash() -> None:
    for lock in ("requirements.lock", "requirements-server.lock"):
        lines = (ROOT / lock).read_text().splitlines()
        pinned = [n for n, line in enumerate(lines) if re.match(r"[a-z0-9._-]+(\[.*\])?==", line)]
        assert len(pinned) > 100
        assert [lines[n] for n in pinned if not lines[n + 1].startswith("    --hash=sha256:")] == []
