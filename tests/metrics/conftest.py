import pytest
import torch

from scl_ray import attribution


@pytest.fixture(scope="session")
def maps(network, images, targets):
    return attribution.explain_many(
        attribution.Batch(network, images, targets), ["grad_cam", "eigen_cam", "saliency", "input_x_gradient"]
    )


@pytest.fixture(scope="session")
def masks(digits):
    """The strokes of the digits: every image has some."""
    return torch.tensor(digits.test_images[digits.evaluation_order[:32], 0] > 100)
