import pytest
import torch

from scl_ray import attribution


@pytest.fixture(scope="session")
def network(trained):
    return trained.explained("corrected")


@pytest.fixture(scope="session")
def images(digits, trained):
    """32 real test images, normalised."""
    pixels = torch.tensor(digits.test_images[digits.evaluation_order[:32]]).float() / 255
    return (pixels - torch.tensor(trained.mean).view(-1, 1, 1)) / torch.tensor(trained.std).view(-1, 1, 1)


@pytest.fixture(scope="session")
def targets(network, images):
    with torch.no_grad():
        return network(images).argmax(1)


@pytest.fixture(scope="session")
def maps(network, images, targets):
    return attribution.explain_many(network, images, targets, ["grad_cam", "eigen_cam", "saliency", "input_x_gradient"])


@pytest.fixture(scope="session")
def masks(digits):
    """The strokes of the digits: every image has some."""
    return torch.tensor(digits.test_images[digits.evaluation_order[:32], 0] > 100)
