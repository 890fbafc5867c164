import math

import numpy as np
import pytest
import quantus
import torch

from scl_ray.metrics import score


@pytest.mark.parametrize("method", ["grad_cam", "eigen_cam", "saliency", "input_x_gradient"])
@pytest.mark.parametrize(("metric", "oracle"), [("complexity", quantus.Complexity), ("sparseness", quantus.Sparseness)])
def test_equals_quantus(network, images, targets, maps, method, metric, oracle):
    ours = score(metric, network, images, targets, maps[method])
    # One image at a time: Quantus scales by the largest value of the batch before it adds its 1e-7.
    theirs = [
        oracle(disable_warnings=True)(network, image[None], target[None], attribution[None, None])[0]
        for image, target, attribution in zip(
            images.numpy(), targets.numpy(), maps[method].double().numpy(), strict=True
        )
    ]
    assert np.abs(ours.numpy() - theirs).max() < 1e-5


def test_extremes(network, images, targets):
    even = torch.ones(len(images), 32, 32)
    even[:, 0, 0] += 1e-3  # not quite constant, which would be undefined
    single = torch.zeros(len(images), 32, 32)
    single[:, 5, 6] = -2.0
    assert (score("complexity", network, images, targets, even) - math.log(1024)).abs().max() < 1e-4
    assert score("complexity", network, images, targets, single).abs().max() == 0
    assert score("sparseness", network, images, targets, even).abs().max() < 1e-4
    assert (score("sparseness", network, images, targets, single) - 1023 / 1024).abs().max() < 1e-6
