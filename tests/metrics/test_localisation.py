import numpy as np
import pytest
import quantus
import torch

from scl_ray.metrics import score


@pytest.mark.parametrize("method", ["grad_cam", "eigen_cam", "saliency", "input_x_gradient"])
def test_attribution_localisation_equals_quantus(network, images, targets, maps, masks, method):
    ours = score("attribution_localisation", network, images, targets, maps[method], masks=masks)
    theirs = quantus.AttributionLocalisation(disable_warnings=True)(
        network, images.numpy(), targets.numpy(), maps[method].double().numpy(), masks[:, None].numpy()
    )
    assert np.abs(ours.numpy() - theirs).max() < 1e-5
    assert 0 < ours.min() < ours.max() < 1


@pytest.mark.parametrize("method", ["grad_cam", "eigen_cam", "saliency", "input_x_gradient"])
def test_pointing_game_equals_quantus(network, images, targets, maps, masks, method):
    theirs = quantus.PointingGame(disable_warnings=True)(
        network, images.numpy(), targets.numpy(), maps[method].numpy(), masks[:, None].numpy()
    )
    published = score("pointing_game[protocol=published]", network, images, targets, maps[method], masks=masks)
    assert published.tolist() == [float(hit) for hit in theirs]
    values = maps[method].flatten(1)
    single = (values == values.amax(1, keepdim=True)).sum(1) == 1
    corrected = score("pointing_game", network, images, targets, maps[method], masks=masks)
    assert torch.equal(corrected[single], published[single])


def test_of_equal_maxima_the_first_points_when_corrected(network, images, targets):
    maps, masks = torch.zeros(len(images), 32, 32), torch.zeros(len(images), 32, 32, dtype=torch.bool)
    maps[:, 3, [4, 9]] = 1.0
    masks[:, 3, 9] = True
    assert (score("pointing_game", network, images, targets, maps, masks=masks) == 0).all()
    assert (score("pointing_game", network, images, targets, maps, masks=masks, protocol="published") == 1).all()


def test_masks_are_needed(network, images, targets, maps):
    for masks in (None, torch.ones(len(images), 16, 16, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"pointing_game needs masks of shape \(32, 32, 32\)"):
            score("pointing_game", network, images, targets, maps["grad_cam"], masks=masks)
