import numpy as np
import pytest
import quantus
import torch
from captum.metrics import infidelity as captum_infidelity
from torch import nn

from scl_ray.attribution import explain
from scl_ray.metrics import score


@pytest.fixture(scope="module")
def explained(network, colour):
    with torch.no_grad():
        targets = network(colour).argmax(1)
    return targets, explain(network, colour, targets, "input_x_gradient")


@pytest.mark.parametrize("patch_size", [4, 8])
def test_published_equals_quantus(network, colour, explained, patch_size):
    targets, maps = explained
    metric = quantus.Infidelity(
        perturb_patch_sizes=[patch_size], n_perturb_samples=1, perturb_baseline="black", disable_warnings=True
    )
    theirs = metric(network, colour.numpy(), targets.numpy(), maps[:, None].numpy(), device="cpu")
    parameters = {"patch_size": patch_size, "baseline": "minimum", "protocol": "published"}
    ours = score("infidelity", network, colour, targets, maps, **parameters)
    # Squares of sums of a thousand values, which Quantus adds in float32.
    assert np.abs(ours.numpy() / theirs - 1).max() < 1e-5
    assert ours.std() > 1


@pytest.mark.parametrize("patch_size", [None, 5])
def test_corrected_equals_captum(exact, network, colour, explained, patch_size):
    colour, targets, maps = (values[:3] for values in (colour, *explained))
    side = patch_size or 4
    corners = [(top, left) for top in range(0, 32, side) for left in range(0, 32, side)]

    def perturb(copies):  # of every image one copy for each square, side by side
        taken = torch.zeros_like(copies)
        for k, own in enumerate(taken):
            top, left = corners[k % len(corners)]
            own[:, top : top + side, left : left + side] = 1
        # What the attributions are multiplied by: a square's own, once for a pixel of three channels.
        return taken / 3, torch.where(taken > 0, 0, copies)

    theirs = captum_infidelity(
        exact, perturb, colour.double(), maps.double()[:, None].expand(-1, 3, -1, -1), target=targets,
        n_perturb_samples=len(corners), normalize=True,
    )  # fmt: skip
    ours = score("infidelity", network, colour, targets, maps, patch_size=patch_size)
    assert (ours - theirs).abs().max() < 1e-5
    assert ours.std() > 0.05


def test_the_scale_of_a_map_matters_only_as_published(network, colour, explained):
    targets, maps = explained
    for protocol, free in (("corrected", True), ("published", False)):
        values = [score("infidelity", network, colour, targets, k * maps, protocol=protocol) for k in (1, -3)]
        assert torch.allclose(*values, rtol=1e-5) == free


def test_attributions_of_a_linear_network_have_none():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).eval()
    images, targets = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    weights = network[1].weight[targets].detach().view(4, 3, 8, 8)
    # Each pixel's share of the score, over the baseline zero; the gradient itself is no whole pixel's.
    shares = (images * weights).sum(1)
    assert score("infidelity", network, images, targets, shares).max() < 1e-9
    assert score("infidelity", network, images, targets, shares.flip(1)).min() > 1e-3
