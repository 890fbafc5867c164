import copy

import pytest
import torch
from torch import nn

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


@pytest.fixture(scope="session")
def colour(images):
    """Eight images whose channels differ."""
    gains = torch.tensor([1.0, 0.6, 0.8]).view(1, 3, 1, 1)
    return gains * torch.stack([images[:8, 0], images[:8, 1].roll(2, 1), images[:8, 2].roll(-1, 2)], 1)


@pytest.fixture(scope="session")
def exact(network):
    """The network in float64, for formulas by hand."""
    return copy.deepcopy(network).double()


@pytest.fixture(scope="session")
def colourful(images):
    """Six digits, each in a colour of its own on a background of another, under noise: (6,3,32,32)."""
    draw = torch.Generator().manual_seed(0)
    ink, paper = torch.rand(2, 6, 3, 1, 1, generator=draw)
    return images[:6] * (0.5 + ink) + paper - 0.5 + 0.1 * torch.randn(6, 3, 32, 32, generator=draw)


@pytest.fixture(scope="session")
def grey(network):
    """The network for images of one channel, the only ones on which Quantus' IROF and ROAD work."""

    class Grey(nn.Module):
        def forward(self, given):
            return network(given.expand(-1, 3, -1, -1))

    return Grey().eval()
