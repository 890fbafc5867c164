import numpy as np
import pytest
import quantus
import torch
from sklearn.metrics import roc_auc_score

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


METHODS = ["grad_cam", "eigen_cam", "saliency", "input_x_gradient"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("metric", "oracle", "parameters"),
    [
        ("top_k_intersection", quantus.TopKIntersection, {"k": 20}),
        ("top_k_intersection[k=100]", quantus.TopKIntersection, {"k": 100}),
        ("relevance_rank_accuracy", quantus.RelevanceRankAccuracy, {}),
        ("localisation_auc", quantus.AUC, {}),
    ],
)
def test_what_ranks_pixels_equals_quantus(network, images, targets, maps, masks, method, metric, oracle, parameters):
    theirs = oracle(**parameters, normalise=False, disable_warnings=True)(
        network, images.numpy(), targets.numpy(), maps[method][:, None].numpy(), masks[:, None].numpy()
    )
    published = score(metric, network, images, targets, maps[method], masks=masks, protocol="published")
    assert np.abs(published.numpy() - theirs).max() < 1e-5
    assert 0 <= published.min() < published.max() <= 1
    # Values that rounding makes equal change places, and with them a pixel or two at the border of those counted.
    corrected = score(metric, network, images, targets, maps[method], masks=masks)
    assert (corrected - published).abs().max() < (1e-4 if metric == "localisation_auc" else 0.06)


@pytest.mark.parametrize("method", ["saliency", "input_x_gradient"])
def test_localisation_auc_equals_scikit_learn(network, images, targets, maps, masks, method):
    tied = (maps[method] * 100).round()
    for given, protocol in ((maps[method], "published"), (tied, "published"), (tied, "corrected")):
        ours = score("localisation_auc", network, images, targets, given, masks=masks, protocol=protocol)
        theirs = [roc_auc_score(m.flatten(), a.flatten()) for m, a in zip(masks.numpy(), given.numpy(), strict=True)]
        assert np.abs(ours.numpy() - theirs).max() < 1e-6


def test_relevance_mass_accuracy_equals_quantus_where_nothing_is_negative(network, images, targets, maps, masks):
    for method in ("grad_cam", "eigen_cam", "saliency"):
        ours = score("relevance_mass_accuracy", network, images, targets, maps[method], masks=masks)
        theirs = quantus.RelevanceMassAccuracy(disable_warnings=True)(
            network, images.numpy(), targets.numpy(), maps[method].double().numpy(), masks[:, None].numpy()
        )
        assert np.abs(ours.numpy() - theirs).max() < 1e-5


def test_of_signed_maps_relevance_mass_accuracy_takes_the_positive_part(network, images, targets, maps, masks):
    signed = maps["input_x_gradient"]
    ours = score("relevance_mass_accuracy", network, images, targets, signed, masks=masks)
    for value, attribution, mask in zip(ours, signed.double().numpy(), masks.numpy(), strict=True):
        inside = total = 0.0
        for row in range(32):
            for column in range(32):
                if attribution[row, column] > 0:
                    total += attribution[row, column]
                    inside += attribution[row, column] * mask[row, column]
        assert abs(value - inside / total) < 1e-5
    negative = score("relevance_mass_accuracy", network, images, targets, -maps["saliency"] - 1e-3, masks=masks)
    assert negative.isnan().all()  # nothing is positive


def test_equal_values_go_by_index_when_corrected(network, images, targets, masks):
    tied = torch.zeros(len(images), 32, 32)
    tied[:, 4:] = 1.0
    first = torch.zeros_like(masks)
    first[:, 4, :20] = True  # the first twenty of the equal maxima
    last = torch.zeros_like(masks)
    last[:, 31, 12:] = True
    for metric in ("top_k_intersection", "relevance_rank_accuracy"):
        for given, expected in ((first, 1.0), (last, 0.0)):
            assert (score(metric, network, images, targets, tied, masks=given) == expected).all()


def test_a_mask_of_everything_leaves_the_auc_undefined(network, images, targets, maps, masks):
    everything = masks.clone()
    everything[2] = True
    values = score("localisation_auc", network, images, targets, maps["saliency"], masks=everything)
    assert values.isnan().nonzero().flatten().tolist() == [2]
    for metric in ("top_k_intersection", "relevance_mass_accuracy", "relevance_rank_accuracy"):
        assert score(metric, network, images, targets, maps["saliency"], masks=everything)[2] == 1


def test_more_pixels_than_there_are_cannot_be_the_most_important(network, images, targets, maps, masks):
    with pytest.raises(ValueError, match="k=1025 is more than the 1024 pixels of an image"):
        score("top_k_intersection[k=1025]", network, images, targets, maps["saliency"], masks=masks)
    with pytest.raises(ValueError, match="k must be a whole number of at least 1, not 0"):
        score("top_k_intersection[k=0]", network, images, targets, maps["saliency"], masks=masks)


def test_masks_are_needed(network, images, targets, maps):
    for masks in (None, torch.ones(len(images), 16, 16, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"pointing_game needs masks of shape \(32, 32, 32\)"):
            score("pointing_game", network, images, targets, maps["grad_cam"], masks=masks)
