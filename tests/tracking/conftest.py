"""One database for all, and a report."""

from pathlib import Path

import pytest

from scl_ray import tracking


@pytest.fixture(autouse=True)
def _no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="session")
def out(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One folder, whose name needs quoting, with one database; every test logs a sweep of its own name."""
    return str(tmp_path_factory.mktemp("the runs"))


@pytest.fixture
def uri(out: str) -> str:
    return tracking.tracking_uri(out)


@pytest.fixture
def report(tmp_path: Path) -> Path:
    folder = tmp_path / "report"
    (folder / "tables").mkdir(parents=True)
    (folder / "index.html").write_text("<title>The report</title>")
    (folder / "tables" / "means.csv").write_text("objective,mean\nsupcon,0.25\n")
    return folder
