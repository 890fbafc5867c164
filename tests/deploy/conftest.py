import pytest
from deploy.manifests import OVERLAYS, Object, rendered


@pytest.fixture(scope="session", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def objects(overlay: str) -> list[Object]:
    """What one overlay comes to."""
    return rendered(overlay)
