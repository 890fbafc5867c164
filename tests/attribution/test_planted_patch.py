"""A patch that alone decides the class is where every faithful method points, and where no control does."""

import pytest
import torch
from torch import nn

from scl_ray.attribution import Batch, explain_many

FAITHFUL = [
    "grad_cam", "grad_cam_plus_plus", "hires_cam", "x_grad_cam", "layer_cam", "eigen_cam", "eigen_grad_cam",
    "score_cam", "ablation_cam", "saliency", "input_x_gradient", "integrated_gradients", "smooth_grad",
    "gradient_shap[samples=20]", "occlusion", "feature_ablation", "lime", "kernel_shap[samples=256]",
]  # fmt: skip
CORNERS = [(0, 0), (4, 16), (12, 20), (24, 24)]


@pytest.fixture(scope="module")
def planted():
    """Speckled images with a coloured square each, and where it is."""
    images = 0.3 * torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    where = torch.zeros(4, 32, 32, dtype=torch.bool)
    for n, (top, left) in enumerate(CORNERS):
        where[n, top : top + 8, left : left + 8] = True
    return torch.where(where[:, None], torch.tensor([2.0, 1.5, -1.5])[:, None, None], images), where


@pytest.fixture(scope="module")
def network():
    """Class 1 is scored by the square's colour; three other maps see the whole image and count next to nothing."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    ).eval()
    with torch.no_grad():
        network[0].weight[0] = torch.tensor([1.0, 1.0, -1.0]).view(3, 1, 1) / 9
        network[0].bias[0] = -1.0
        network[5].weight.copy_(torch.tensor([[0.0, 0.01, -0.01, 0.01], [10.0, 0.01, 0.01, -0.01]]))
    return network


@pytest.fixture(scope="module")
def maps(planted, network):
    images, _ = planted
    with torch.no_grad():
        assert (network(images).argmax(1) == 1).all()
    speckle = 0.3 * torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    batch = Batch(network, images, torch.ones(4, dtype=torch.int64), reference=speckle)
    return explain_many(batch, [*FAITHFUL, "random"])


@pytest.mark.parametrize("method", FAITHFUL)
def test_every_faithful_method_finds_the_patch(planted, maps, method):
    where = planted[1]
    positive = maps[method].relu()
    assert where.flatten(1)[torch.arange(4), positive.flatten(1).argmax(1)].all()
    # The patch is a sixteenth of the image; a CAM of 8x8 positions is blurred by a quarter of its side on each side.
    assert ((positive * where).sum((1, 2)) / positive.sum((1, 2)) > 0.5).all()


def test_random_does_not(planted, maps):
    share = (maps["random"] * planted[1]).sum((1, 2)) / maps["random"].sum((1, 2))
    assert (share < 0.1).all()
