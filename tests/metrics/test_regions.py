import copy

import numpy as np
import pytest
import quantus
import torch
from skimage.segmentation import slic

from scl_ray.attribution import Batch
from scl_ray.metrics import cost, score, score_many
from scl_ray.metrics.regions import remove_segments


@pytest.fixture(autouse=True)
def trapezoid(monkeypatch):
    # Quantus 0.6.0 calls a function that NumPy has renamed.
    monkeypatch.setattr(np, "trapz", np.trapezoid, raising=False)


def probability(network, image, target):
    with torch.no_grad():
        return float(network(torch.from_numpy(image)[None])[0].softmax(0)[target])


def curve_by_hand(network, image, target, region_of, importance, baseline):
    """The probability of the image and after each region, the most important first, in float64."""
    perturbed, curve = image.copy(), [probability(network, image, target)]
    for region in sorted(range(len(importance)), key=lambda region: (-importance[region], region)):
        perturbed[:, region_of == region] = baseline
        curve.append(probability(network, perturbed, target))
    return curve


def patches_by_hand(height, width, side):
    """Patches of a grid that is centred on the image, by the coordinates of every pixel."""
    top, left = (-height % side) // 2, (-width % side) // 2
    columns = -(-width // side)
    return np.array([[(row + top) // side * columns + (column + left) // side for column in range(width)]
                     for row in range(height)])  # fmt: skip


@pytest.mark.parametrize("side", [8, 5])
def test_patches_equal_a_float64_loop_by_hand(network, colourful, targets, maps, side):
    exact, region_of = copy.deepcopy(network).double(), patches_by_hand(32, 32, side)
    attributions = maps["input_x_gradient"][:4]
    count, regions = region_of.max() + 1, 12
    given = (network, colourful[:4], targets[:4], attributions)
    areas = score("region_perturbation", *given, patch_size=side, regions=regions, baseline="mean")
    selected = score("selectivity", *given, patch_size=side)
    for i, image in enumerate(colourful[:4].double().numpy()):
        importance = [attributions[i].double().numpy()[region_of == region].sum() for region in range(count)]
        curve = curve_by_hand(exact, image, targets[i], region_of, importance, image.mean())[: regions + 1]
        assert abs(areas[i] - np.mean([curve[0] - value for value in curve])) < 1e-5
        curve = curve_by_hand(exact, image, targets[i], region_of, importance, image.min())
        assert len(curve) == count + 1
        assert abs(selected[i] - np.trapezoid(curve) / count) < 1e-5


@pytest.mark.parametrize("side", [8, 7])
@pytest.mark.parametrize("protocol", ["corrected", "published"])
def test_patches_equal_quantus(network, colourful, targets, maps, side, protocol):
    # Black only: Quantus takes the mean anew after each patch, from what is left. Its minimum is that of the padded
    # image, whose border repeats the image's.
    attributions, labels = maps["input_x_gradient"][:6], targets[:6]
    settings = {"patch_size": side, "perturb_baseline": "black", "normalise": False, "disable_warnings": True}
    quantus_drops = quantus.RegionPerturbation(regions_evaluation=10, **settings)
    quantus_curves = quantus.Selectivity(**settings)
    given = (network, colourful.numpy(), labels.numpy(), attributions[:, None].numpy())
    drops, curves = (np.stack(metric(*given, softmax=True, device="cpu")) for metric in (quantus_drops, quantus_curves))
    ours = [f"region_perturbation[baseline=minimum,patch_size={side},regions=10,protocol={protocol}]",
            f"selectivity[patch_size={side},protocol={protocol}]"]  # fmt: skip
    batch = Batch(network, colourful, labels)
    cells = [("input_x_gradient", metric) for metric in ours]
    found = score_many(batch, {"input_x_gradient": attributions}, cells)
    assert np.abs(found[cells[0]].curve.numpy() - drops).max() < 1e-5
    assert np.abs(found[cells[1]].curve[:, 1:].numpy() - curves).max() < 1e-5
    assert drops.shape == (6, 10)
    assert np.abs(drops).max() > 0.1


def test_samek_replaces_patches_by_uniform_noise(network, colourful, targets, maps):
    given = (network, colourful, targets[:6], maps["saliency"][:6])
    noisy = score("region_perturbation", *given)
    assert torch.equal(noisy, score("region_perturbation", *given))
    assert (noisy - score("region_perturbation", *given, seed=1)).abs().max() > 1e-3


def test_superpixels_equal_a_float64_loop_by_hand(network, colourful, targets, maps, digits):
    exact = copy.deepcopy(network).double()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (digits.mean, digits.std))
    attributions = maps["input_x_gradient"][:4]
    values = score(
        "irof", network, colourful[:4], targets[:4], attributions, segments=30, mean=digits.mean, std=digits.std
    )
    counts = set()
    for i, image in enumerate(colourful[:4]):
        region_of = slic((image * std + mean).permute(1, 2, 0).double().numpy(), n_segments=30, start_label=0)
        count = region_of.max() + 1
        counts.add(count)
        importance = [attributions[i].double().numpy()[region_of == region].mean() for region in range(count)]
        pixels = image.double().numpy()
        curve = np.array(curve_by_hand(exact, pixels, targets[i], region_of, importance, pixels.mean()))
        assert abs(values[i] - (1 - np.trapezoid(curve / curve[0]) / count)) < 1e-5
    assert len(counts) > 1  # images of unlike numbers of superpixels go together


def test_superpixels_equal_quantus_on_single_grey_images(grey, images, targets, maps):
    # Quantus gives the mean over images, and its area depends on the others of the batch: one image at a time. Black
    # only: it takes the mean anew after each superpixel. The area leaves the image itself out.
    metric = quantus.IROF(perturb_baseline="black", normalise=False, disable_warnings=True)
    attributions = maps["input_x_gradient"][:4]
    batch = Batch(grey, images[:4, :1], targets[:4])
    parameters = {"segments": 100, "baseline": "minimum", "precision": "float32", "protocol": "corrected"}
    removed = remove_segments(batch, {"m": attributions}, "irof", **parameters)["m"].calibrated
    for i in range(4):
        theirs = metric(grey, images[i : i + 1, :1].numpy(), targets[i : i + 1].numpy(),
                        attributions[i : i + 1, None].numpy(), softmax=True, device="cpu")  # fmt: skip
        curve = removed[i][~removed[i].isnan()].double().numpy()
        assert abs(np.mean(theirs) - (len(curve) - 1 - np.trapezoid(curve[1:] / curve[0]))) < 1e-4  # a sum of ~60


@pytest.mark.parametrize("metric", ["region_perturbation", "selectivity", "irof"])
def test_values_do_not_depend_on_the_pass_or_the_batch(network, colourful, targets, maps, metric):
    before = colourful.clone()
    cell, attributions = ("saliency", metric), maps["saliency"][:6]
    together = score_many(Batch(network, colourful, targets[:6]), {"saliency": attributions}, [cell])[cell].values
    for at_once, part in ((5, slice(0, 4)), (64, slice(4, 6)), (1, slice(1, 2))):
        batch = Batch(network, colourful[part], targets[:6][part], at_once=at_once, image_ids=range(6)[part])
        alone = score_many(batch, {"saliency": attributions[part]}, [cell])[cell].values
        assert torch.allclose(alone, together[part], rtol=0, atol=1e-5)
    assert torch.equal(colourful, before)


def test_cost_counts_regions():
    assert cost([("saliency", "region_perturbation"), ("grad_cam", "region_perturbation")], 32) == 2 * 16
    assert cost([("saliency", "region_perturbation")], 224) == 100
    assert cost([("saliency", "selectivity")], 224) == 28 * 28
    assert cost([("saliency", "selectivity[patch_size=5]")], 32) == 49
    assert cost([("saliency", "irof[segments=30]")], 32) == 30


def test_a_patch_must_leave_something(network, images, targets, maps):
    with pytest.raises(ValueError, match="patch_size=32 takes an image of 32x32 as one patch; take a smaller one"):
        score("selectivity", network, images, targets, maps["saliency"], patch_size=32)
