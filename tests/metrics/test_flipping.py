import copy
from itertools import pairwise

import numpy as np
import pytest
import quantus
import torch
from torch import nn

from scl_ray.attribution import Batch, explain
from scl_ray.metrics import score, score_many
from scl_ray.metrics.flipping import most_important_first


def curve_by_hand(network, image, target, attribution, features_per_step, baseline):
    """Pixel flipping of one image in float64: the probability and whether the class is predicted, after each step."""
    height, width = attribution.shape
    largest = np.abs(attribution).max()
    rounded = {
        (row, column): round(float(attribution[row, column]) / largest * 1e6)
        for row in range(height)
        for column in range(width)
    }
    order = sorted(rounded, key=lambda pixel: (-rounded[pixel], pixel))
    perturbed, probabilities, kept = image.copy(), [], []
    for start in range(0, len(order), features_per_step):
        for row, column in order[start : start + features_per_step]:
            perturbed[:, row, column] = baseline
        with torch.no_grad():
            scores = network(torch.from_numpy(perturbed)[None])[0].numpy()
        weights = np.exp(scores - scores.max())
        probabilities.append(weights[target] / weights.sum())
        kept.append(float(scores.argmax() == target))
    return probabilities, kept


def trapezoid(values):
    return sum((a + b) / 2 for a, b in pairwise(values)) / (len(values) - 1)


@pytest.mark.parametrize("method", ["grad_cam", "saliency"])
def test_equals_a_float64_loop_by_hand(network, images, targets, maps, method):
    exact = copy.deepcopy(network).double()
    hand = [
        curve_by_hand(exact, image, int(target), attribution, 32, image.min())
        for image, target, attribution in zip(
            images.double().numpy(), targets, maps[method].double().numpy(), strict=True
        )
    ]
    auc = score("pixel_flipping_auc", network, images, targets, maps[method])
    flip = score("prediction_flip_auc", network, images, targets, maps[method])
    assert auc.dtype == flip.dtype == torch.float32
    assert np.abs(auc.numpy() - [trapezoid(probabilities) for probabilities, _ in hand]).max() < 1e-5
    assert np.abs(flip.numpy() - [np.mean(kept) for _, kept in hand]).max() < 1e-5


def test_features_per_step_and_baseline(network, images, targets, maps):
    exact = copy.deepcopy(network).double()
    parameters = {"features_per_step": 100, "baseline": "mean"}
    values = score("pixel_flipping_auc", network, images[:4], targets[:4], maps["grad_cam"][:4], **parameters)
    for i in range(4):
        image, attribution = images[i].double().numpy(), maps["grad_cam"][i].double().numpy()
        probabilities, _ = curve_by_hand(exact, image, int(targets[i]), attribution, 100, image.mean())
        assert len(probabilities) == 11  # the last step holds the 24 pixels that are left
        assert abs(values[i] - trapezoid(probabilities)) < 1e-5


def test_equals_quantus(monkeypatch, network, images, targets):
    # Quantus 0.6.0 calls a function that NumPy has renamed.
    monkeypatch.setattr(np, "trapz", np.trapezoid, raising=False)
    # It flips single channel values, in the order of a map that is broadcast over the channels. An offset for each
    # channel, far below the smallest gap between values, makes it flip whole pixels; a map without ties leaves nothing
    # to the unstable sort. The pixels have to be divisible by the step of 3 x 48 values, which they are at 48x48.
    images = nn.functional.interpolate(images, (48, 48), mode="bilinear")
    saliency = explain(network, images, targets, "saliency").flatten(1)
    ranks = saliency.argsort(1).argsort(1).double().view(-1, 1, 48, 48)
    untied = ranks + torch.tensor([0.2, 0.1, 0.0]).view(1, 3, 1, 1)
    metric = quantus.PixelFlipping(
        features_in_step=3 * 48, perturb_baseline="black", normalise=False, return_auc_per_sample=True,
        disable_warnings=True,
    )  # fmt: skip
    theirs = metric(network, images.numpy(), targets.numpy(), untied.numpy(), softmax=True, device="cpu")
    for protocol in ("corrected", "published"):
        ours = score("pixel_flipping_auc", network, images, targets, ranks[:, 0].float(), protocol=protocol)
        assert np.abs(ours.numpy() - np.array(theirs) / 47).max() < 1e-5


def test_ties_go_by_index_when_corrected_and_as_numpy_sorts_when_published(network, images, targets, maps):
    tied = maps["grad_cam"].mul(4).round().div(4)
    flat = tied.flatten(1).numpy()
    assert (most_important_first(tied, "corrected").numpy() == np.argsort(-flat, 1, kind="stable")).all()
    assert (most_important_first(tied, "published").numpy() == np.argsort(-flat, 1)).all()
    values = [
        score("pixel_flipping_auc", network, images, targets, tied, protocol=protocol)
        for protocol in ("corrected", "published")
    ]
    assert (values[0] - values[1]).abs().max() > 1e-3


def test_rounding_errors_decide_no_order(maps):
    tied = maps["grad_cam"].mul(4).round().div(4)
    errors = 2e-7 * (torch.rand(tied.shape, generator=torch.Generator().manual_seed(0)) - 0.5)
    assert torch.equal(most_important_first(tied + errors, "corrected"), most_important_first(tied, "corrected"))
    assert not torch.equal(most_important_first(tied + errors, "published"), most_important_first(tied, "published"))


def test_only_the_flip_metric_is_free_of_calibration(network, images, targets, maps):
    class Cooled(nn.Module):
        def forward(self, given):
            return 4 * network(given)

    cooled = Cooled().eval()
    for metric, free in (("prediction_flip_auc", True), ("pixel_flipping_auc", False)):
        values = [score(metric, model, images, targets, maps["grad_cam"]) for model in (network, cooled)]
        assert torch.equal(*values) == free


def test_both_metrics_and_the_curve_come_from_the_same_passes(network, images, targets, maps):
    seen = []
    cells = [("grad_cam", "pixel_flipping_auc"), ("grad_cam", "prediction_flip_auc")]
    with network.register_forward_hook(lambda module, inputs, output: seen.append(len(output))):
        found = score_many(Batch(network, images, targets), maps, cells)
    assert sum(seen) == 32 * len(images)
    probability, kept = (found[cell].curve for cell in cells)
    assert probability.shape == kept.shape == (len(images), 32)
    assert set(kept.unique().tolist()) <= {0.0, 1.0}
    assert torch.allclose(found[cells[1]].values, kept.mean(1))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"features_per_step": 1024}, "flips all 1024 pixels at once"),
        ({"features_per_step": 0}, "features_per_step must be a whole number of at least 1, not 0"),
        ({"baseline": "black"}, "baseline must be minimum or mean, not 'black'"),
    ],
)
def test_bad_parameters(network, images, targets, maps, parameters, message):
    with pytest.raises(ValueError, match=message):
        score("pixel_flipping_auc", network, images, targets, maps["grad_cam"], **parameters)
