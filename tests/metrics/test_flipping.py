import copy
from itertools import pairwise

import numpy as np
import pytest
import quantus
import torch
from scipy.ndimage import convolve, gaussian_filter
from torch import nn

from scl_ray import plan
from scl_ray.attribution import Batch, explain, shared_forward
from scl_ray.attribution.seeding import generator
from scl_ray.metrics import METRICS, cost, resolve, score, score_many
from scl_ray.metrics.ranking import most_important_first
from scl_ray.metrics.removal import BASELINES


@pytest.fixture(scope="module")
def colourful(images):
    """Six digits, each in a colour of its own on a background of another, under noise: (6,3,32,32)."""
    draw = torch.Generator().manual_seed(0)
    ink, paper = torch.rand(2, 6, 3, 1, 1, generator=draw)
    return images[:6] * (0.5 + ink) + paper - 0.5 + 0.1 * torch.randn(6, 3, 32, 32, generator=draw)


@pytest.fixture
def passed(monkeypatch):
    """How many images went through the network, and at which precision, pass by pass."""
    seen, scores = [], Batch.scores

    def counted(batch, images, precision="float32"):
        seen.append((len(images), precision))
        assert images is batch.images or images.is_contiguous(memory_format=torch.channels_last)
        return scores(batch, images, precision)

    monkeypatch.setattr(Batch, "scores", counted)
    return seen


def probability_by_hand(scores, target):
    weights = np.exp(scores - scores.max())
    return weights[target] / weights.sum()


def curve_by_hand(network, image, target, attribution, features_per_step, baseline):
    """Pixel flipping of one image in float64: the probability and whether the class is predicted, after each step.

    baseline: a number, or an image.
    """
    baseline = np.broadcast_to(baseline, image.shape)
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
            perturbed[:, row, column] = baseline[:, row, column]
        with torch.no_grad():
            scores = network(torch.from_numpy(perturbed)[None])[0].numpy()
        probabilities.append(probability_by_hand(scores, target))
        kept.append(float(scores.argmax() == target))
    return probabilities, kept


def trapezoid(values):
    return sum((a + b) / 2 for a, b in pairwise(values)) / (len(values) - 1)


@pytest.mark.parametrize("method", ["grad_cam", "saliency"])
def test_equals_a_float64_loop_by_hand(network, images, targets, maps, method):
    exact = copy.deepcopy(network).double()
    given = (images[:12], targets[:12], maps[method][:12])
    hand = [
        curve_by_hand(exact, image, int(target), attribution, 32, image.min())
        for image, target, attribution in zip(
            given[0].double().numpy(), given[1], given[2].double().numpy(), strict=True
        )
    ]
    auc = score("pixel_flipping_auc", network, *given)
    flip = score("prediction_flip_auc", network, *given)
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
    images, targets = nn.functional.interpolate(images[:8], (48, 48), mode="bilinear"), targets[:8]
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
        values = [score(metric, model, images[:12], targets[:12], maps["grad_cam"][:12]) for model in (network, cooled)]
        assert torch.equal(*values) == free


def blurred_by_hand(image):
    """The blur of the authors' code: an impulse in a window of 11x11 pixels, blurred by SciPy, is the kernel."""
    impulse = np.zeros((11, 11))
    impulse[5, 5] = 1
    kernel = gaussian_filter(impulse, 5)
    return np.stack([convolve(plane, kernel, mode="constant") for plane in image])


HAND = {"minimum": np.min, "mean": np.mean, "zero": lambda image: 0.0, "blur": blurred_by_hand}


def baseline_by_hand(name, image, image_id):
    if name in HAND:
        return HAND[name](image)
    # Seeded by the image and the name of the baseline alone.
    drawn = generator(7, image_id, "uniform baseline").random(image.shape, dtype=np.float32).astype(np.float64)
    return image.min() + (image.max() - image.min()) * drawn


@pytest.mark.parametrize("order", ["most_relevant", "least_relevant"])
@pytest.mark.parametrize("baseline", list(BASELINES))
def test_every_baseline_and_order_on_colour_images(network, colourful, targets, maps, baseline, order):
    exact, attributions = copy.deepcopy(network).double(), maps["input_x_gradient"][:3]
    context = {"seed": 7, "image_ids": [30, 10, 20]}
    parameters = {"features_per_step": 150, "baseline": baseline, "order": order}
    given = (network, colourful[:3], targets[:3], attributions)
    auc = score("pixel_flipping_auc", *given, **context, **parameters)
    deleted = score("deletion_auc", *given, **context, **parameters)
    for i, image in enumerate(colourful[:3].double().numpy()):
        sign = 1 if order == "most_relevant" else -1
        filled = baseline_by_hand(baseline, image, context["image_ids"][i])
        attribution = sign * attributions[i].double().numpy()
        probabilities, _ = curve_by_hand(exact, image, int(targets[i]), attribution, 150, filled)
        assert len(probabilities) == 7  # the last step holds the 124 pixels that are left
        assert abs(auc[i] - trapezoid(probabilities)) < 1e-5
        with torch.no_grad():
            whole = probability_by_hand(exact(torch.from_numpy(image)[None])[0].numpy(), targets[i])
        assert abs(deleted[i] - trapezoid([whole, *probabilities])) < 1e-5


def test_deletion_and_insertion_as_their_authors_do_it(network, colourful, targets, maps):
    """The loop of Petsiuk et al.'s code: from *start* to *finish*, the most salient pixels first."""
    exact, step = copy.deepcopy(network).double(), 100
    for metric in ("deletion_auc", "insertion_auc"):
        values = score(metric, network, colourful, targets[:6], maps["saliency"][:6], features_per_step=step)
        for i, image in enumerate(colourful.double().numpy()):
            blurred = blurred_by_hand(image)
            start, finish = (image, np.zeros_like(image)) if metric == "deletion_auc" else (blurred, image)
            start = start.copy().reshape(3, -1)
            salient = np.argsort(-maps["saliency"][i].numpy().ravel(), kind="stable")
            curve = []
            for k in range(12):
                with torch.no_grad():
                    scores = exact(torch.from_numpy(start.reshape(1, 3, 32, 32)))[0].numpy()
                curve.append(probability_by_hand(scores, targets[i]))
                pixels = salient[step * k : step * (k + 1)]
                start[:, pixels] = finish.reshape(3, -1)[:, pixels]
            assert np.array_equal(start, finish.reshape(3, -1))
            assert abs(values[i] - trapezoid(curve)) < 1e-5


def test_uniform_noise_spans_the_image_and_depends_on_the_image_alone(network, colourful, targets):
    batch = Batch(network, colourful, targets[:6], seed=1, image_ids=range(6))
    noise = BASELINES["uniform"](batch)
    low, high = colourful.amin((1, 2, 3)), colourful.amax((1, 2, 3))
    assert (noise.amin((1, 2, 3)) >= low).all()
    assert (noise.amax((1, 2, 3)) <= high).all()
    assert torch.allclose(noise.mean((1, 2, 3)), (low + high) / 2, rtol=0, atol=0.2)
    alone = Batch(network, colourful[4:5], targets[4:5], seed=1, image_ids=[4])
    assert torch.equal(BASELINES["uniform"](alone), noise[4:5])
    assert not torch.equal(noise[0], noise[1])


def test_raw_probabilities_undo_the_temperature(network, colourful, targets, maps):
    given = (colourful, targets[:6], maps["grad_cam"][:6])
    temperature = network.temperature
    assert abs(temperature - 1) > 0.1

    class Uncalibrated(nn.Module):
        def forward(self, given):
            return network(given) * temperature

    for metric in ("pixel_flipping_auc", "deletion_auc", "insertion_auc"):
        raw = score(metric, network, *given, probability="raw")
        own = score(metric, Uncalibrated().eval(), *given)
        assert (raw - own).abs().max() < 1e-5
        assert (raw - score(metric, network, *given)).abs().max() > 1e-3
        # A network without a temperature is as it is.
        assert torch.equal(score(metric, Uncalibrated().eval(), *given, probability="raw"), own)


def test_metrics_that_read_the_same_images_share_one_run(network, images, targets, maps, passed):
    metrics = [
        "pixel_flipping_auc", "pixel_flipping_auc[probability=raw]", "prediction_flip_auc",
        "deletion_auc[baseline=minimum]", "deletion_auc[baseline=minimum,probability=raw]",
    ]  # fmt: skip
    cells = [(method, metric) for method in ("grad_cam", "eigen_cam") for metric in metrics]
    found = score_many(Batch(network, images, targets), maps, cells)
    # All copies in full passes, and the images themselves, which here no one has run before.
    assert passed == [(64, "float32")] * (2 * 32 * 32 // 64) + [(32, "float32")]
    assert cost(cells, 32) == 2 * 32
    probability, raw, kept, deleted, _ = (found["grad_cam", metric].curve for metric in metrics)
    assert probability.shape == kept.shape == (len(images), 32)
    assert torch.equal(deleted[:, 1:], probability)
    assert not torch.allclose(probability, raw)
    assert set(kept.unique().tolist()) <= {0.0, 1.0}
    assert torch.allclose(found["grad_cam", "prediction_flip_auc"].values, kept.mean(1))
    for method, metric in cells:
        alone = score(metric, network, images[:4], targets[:4], maps[method][:4])
        assert torch.allclose(found[method, metric].values[:4], alone, rtol=0, atol=1e-5)


def test_what_changes_the_images_splits_the_run(network, images, targets, maps, passed):
    metrics = [f"pixel_flipping_auc[{p}]" for p in ("baseline=mean", "order=least_relevant", "precision=bfloat16")]
    score_many(Batch(network, images, targets), maps, [("grad_cam", metric) for metric in metrics])
    copies = [precision for number, precision in passed if number == 64]
    assert copies == ["float32"] * 32 + ["bfloat16"] * 16
    assert cost([("grad_cam", metric) for metric in metrics], 32) == 3 * 32


def test_an_image_that_was_run_before_is_not_run_again(network, images, targets, maps, passed):
    batch = Batch(network, images, targets)
    run = batch.but(passed=shared_forward(batch, []))
    cells = [("grad_cam", metric) for metric in ("insertion_auc", "deletion_auc")]
    again = score_many(run, maps, cells)
    assert sum(number for number, _ in passed) == 2 * 32 * 32
    for cell, scores in score_many(batch, maps, cells).items():
        assert torch.allclose(scores.values, again[cell].values, rtol=0, atol=1e-5)


def test_any_number_of_images_channels_and_pixels(passed):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).eval()
    images, targets, maps = torch.randn(5, 2, 9, 13), torch.tensor([0, 1, 2, 0, 1]), torch.rand(5, 9, 13)
    before = images.clone()
    found = []
    for at_once in (1, 7, 64):
        batch = Batch(network, images, targets, at_once=at_once)
        cells = [("saliency", metric) for metric in ("pixel_flipping_auc[baseline=blur]", "insertion_auc")]
        found.append(torch.stack([s.values for s in score_many(batch, {"saliency": maps}, cells).values()]))
    assert torch.allclose(found[0], found[1], rtol=0, atol=1e-5)
    assert torch.allclose(found[0], found[2], rtol=0, atol=1e-5)
    assert torch.equal(images, before)
    hand = [
        trapezoid(curve_by_hand(copy.deepcopy(network).double(), image, int(t), m, 13, blurred_by_hand(image))[0])
        for image, t, m in zip(images.double().numpy(), targets, maps.double().numpy(), strict=True)
    ]
    assert np.abs(found[0][0].numpy() - hand).max() < 1e-5


def test_with_the_least_relevant_first_higher_is_better():
    for metric in ("pixel_flipping_auc", "prediction_flip_auc", "deletion_auc"):
        assert METRICS[metric].better(resolve(metric).parameters) == "lower"
        assert plan._reading(f"{metric}[order=least_relevant]") == {"facet": "faithfulness", "direction": "higher"}
    assert plan._reading("insertion_auc")["direction"] == "higher"


def test_the_planted_patch_is_found():
    """A network that sees one patch only: a map of that patch beats any other."""

    class Patch(nn.Module):
        def forward(self, given):
            inside = given[:, :, 10:18, 10:18].mean((1, 2, 3))
            return torch.stack([inside, -inside], 1)

    bright = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    classes = torch.zeros(8, dtype=torch.int64)
    patch = torch.zeros(8, 32, 32)
    patch[:, 10:18, 10:18] = 1
    elsewhere = patch.roll((14, 14), (1, 2))
    bright += patch[:, None]
    for metric in ("pixel_flipping_auc[order=least_relevant]", "pixel_flipping_auc", "deletion_auc", "insertion_auc"):
        good, bad = (score(metric, Patch().eval(), bright, classes, m) for m in (patch, elsewhere))
        entry, parameters = resolve(metric)[1:]
        assert ((good > bad) if entry.better(parameters) == "higher" else (good < bad)).all(), metric


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"features_per_step": 1024}, "flips all 1024 pixels at once"),
        ({"features_per_step": 0}, "features_per_step must be a whole number of at least 1, not 0"),
        ({"baseline": "black"}, "baseline must be minimum or mean or zero or blur or uniform, not 'black'"),
    ],
)
def test_bad_parameters(network, images, targets, maps, parameters, message):
    with pytest.raises(ValueError, match=message):
        score("pixel_flipping_auc", network, images, targets, maps["grad_cam"], **parameters)
