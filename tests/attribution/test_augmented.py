import copy

import numpy as np
import pytest
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from scl_ray.attribution import cost, explain

RESIZE = 1e-4  # grad-cam resizes with OpenCV


def test_published_equals_grad_cam_library(network, images, targets):
    images, targets = images[:8], targets[:8]
    wanted = [ClassifierOutputTarget(int(target)) for target in targets]
    given = copy.deepcopy(network)  # on whose parameters grad-cam leaves gradients
    theirs = GradCAM(given, [given.cam_layer])(images, wanted, aug_smooth=True)
    ours = explain(network, images, targets, "augmented_grad_cam", protocol="published")
    assert np.abs(ours.numpy() - theirs).max() < RESIZE


def test_corrected_stays_within_the_pixel_range(network, images, targets):
    images, targets = images[:4], targets[:4]
    mean, std = torch.tensor([0.3, 0.4, 0.5]), torch.tensor([0.2, 0.3, 0.4])
    pixels = images * std.view(-1, 1, 1) + mean.view(-1, 1, 1)
    by_hand = []
    for factor in (0.9, 1.0, 1.1):
        version = ((pixels * factor).clamp(0, 1) - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
        by_hand.append(explain(network, version, targets, "grad_cam"))
        by_hand.append(explain(network, version.flip(-1), targets, "grad_cam").flip(-1))
    assert (pixels * 1.1).max() > 1
    ours = explain(network, images, targets, "augmented_grad_cam", mean=mean, std=std)
    assert torch.allclose(ours, torch.stack(by_hand).mean(0), atol=1e-6)
    assert not torch.allclose(ours, explain(network, images, targets, "grad_cam"), atol=1e-2)


@pytest.mark.parametrize("methods", [["augmented_grad_cam"], ["augmented_grad_cam", "grad_cam"]])
def test_costs_six_passes(methods):
    assert cost(methods, 32) == 6 + ("grad_cam" in methods)
