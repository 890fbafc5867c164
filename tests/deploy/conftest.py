import pytest
from deploy.manifests import OVERLAYS, Object, rendered


@pytest.fixture(scope="session", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def objects(overlay: str) -> list[Object]:
    """What one overlay comes to."""
    return rendered(overlay)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Building the image takes minutes and gigabytes, which is done when it is asked for."""
    if "docker" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("docker"):
                item.add_marker(pytest.mark.skip(reason="builds the image: `make test-docker`"))
