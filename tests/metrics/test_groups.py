import numpy as np
import pytest
import quantus
import torch
from scipy.stats import pearsonr, spearmanr
from torch import nn

from scl_ray.attribution import Batch, explain
from scl_ray.metrics import score
from scl_ray.metrics.groups import redraw_groups
from scl_ray.metrics.perturbed import answers, unperturbed
from scl_ray.metrics.ranking import most_important_first


@pytest.fixture(scope="module")
def untied(network, colour):
    images = colour[:4, :, 4:28, 4:28]  # a step has to divide their pixels
    """Images, targets, a map without ties, and the same broadcast to channel values so that Quantus takes whole pixels.

    Quantus orders channel values: an offset for each channel, far below the smallest gap, keeps a pixel together.
    """
    with torch.no_grad():
        targets = network(images).argmax(1)
    saliency = explain(network, images, targets, "saliency").flatten(1)
    ranks = saliency.argsort(1).argsort(1).double().view(-1, 1, 24, 24) + 1
    return images, targets, ranks[:, 0].float(), (ranks + torch.tensor([0.2, 0.1, 0.0]).view(1, 3, 1, 1)).numpy()


def test_faithfulness_estimate_equals_quantus(network, untied):
    images, targets, maps, theirs = untied
    metric = quantus.FaithfulnessEstimate(features_in_step=72, perturb_baseline="black", disable_warnings=True)
    values = metric(network, images.numpy(), targets.numpy(), theirs, device="cpu")
    for protocol in ("corrected", "published"):
        ours = score("faithfulness_estimate", network, images, targets, maps, protocol=protocol)
        assert np.abs(ours.numpy() - values).max() < 1e-5


def test_monotonicity_correlation_equals_quantus(monkeypatch, network, untied):
    images, targets, maps, theirs = untied
    levels = iter(np.tile((np.arange(5) + 0.5) / 5, 24))
    monkeypatch.setattr(np.random, "uniform", lambda low, high, size: np.full(size, next(levels)))
    # It asks for a level with every copy; nothing else of it is random.
    metric = quantus.MonotonicityCorrelation(features_in_step=72, nr_samples=5, disable_warnings=True)
    values = metric(network, images.numpy(), targets.numpy(), theirs, device="cpu")
    ours = score("monotonicity_correlation", network, images, targets, maps, samples=5, protocol="published")
    # Its softmax is in float32, which rounds some effects to the same rank.
    assert np.abs(ours.numpy() - values).max() < 1e-5


def groups_by_hand(attribution, size, ascending):
    values = attribution.flatten().double().abs() if ascending else attribution.flatten().double()
    rounded = (values / values.abs().max() * 1e6).round()
    order = sorted(
        range(len(values)), key=lambda pixel: (float(rounded[pixel] if ascending else -rounded[pixel]), pixel)
    )
    return [order[start : start + size] for start in range(0, len(order), size)], values


def changed_by_hand(exact, image, pixels, filling):
    changed = image.double().clone()
    for pixel in pixels:
        changed[:, pixel // image.shape[2], pixel % image.shape[2]] = filling
    with torch.no_grad():
        return exact(changed[None])[0]


def test_equal_a_float64_loop(network, exact, images, targets, maps, digits):
    mean, std = (torch.tensor(values).double() for values in (digits.mean, digits.std))
    parameters = {"features_per_step": 100}
    for i in (0, 3):
        image, target, attribution = images[i], int(targets[i]), maps["input_x_gradient"][i]
        given = (network, images[i : i + 1], targets[i : i + 1], attribution[None])
        groups, values = groups_by_hand(attribution, 100, ascending=False)
        with torch.no_grad():
            before = exact(image.double()[None])[0]
        drops = [
            float(before[target] - changed_by_hand(exact, image, group, image.double().mean())[target])
            for group in groups
        ]
        assert len(groups) == 11  # the last one holds the 24 pixels that are left
        hand = pearsonr([float(values[group].sum()) for group in groups], drops)[0]
        assert abs(score("faithfulness_estimate", *given, baseline="mean", **parameters) - hand) < 1e-5

        groups, values = groups_by_hand(attribution, 100, ascending=True)
        effects = []
        for group in groups:
            after = [
                changed_by_hand(exact, image, group, (u - mean) / std).softmax(0)[target] for u in (1 / 6, 0.5, 5 / 6)
            ]
            effects.append(np.mean([float(probability - before.softmax(0)[target]) ** 2 for probability in after]))
        hand = spearmanr([float(values[group].sum()) for group in groups], effects)[0]
        ours = score("monotonicity_correlation", *given, samples=3, mean=digits.mean, std=digits.std, **parameters)
        assert abs(ours - hand) < 1e-5


def test_ten_levels_are_closer_to_the_expectation_than_a_hundred_draws(network, images, targets, maps):
    batch, own = Batch(network, images[:2], targets[:2]), {"grad_cam": maps["grad_cam"][:2]}

    def effects(samples):
        parameters = {"features_per_step": 256, "precision": "float32", "protocol": "published"}
        return redraw_groups(batch, own, "", samples=samples, **parameters)["grad_cam"].effect

    expected, ten = effects(100), effects(10)
    # Of the effect of single draws: its fourth moment comes from the curve of the probability over 100 levels.
    order = most_important_first(-own["grad_cam"].abs(), "published")
    groups = torch.empty_like(order).scatter_(1, order, (torch.arange(1024) // 256).expand(2, -1))

    def perturbed(copies, numbers):
        redrawn = (groups[copies] == (numbers // 100)[:, None]).view(-1, 1, 32, 32)
        return torch.where(redrawn, ((numbers % 100 + 0.5) / 100).view(-1, 1, 1, 1), batch.images[copies])

    single = (answers(batch, 400, perturbed).probability - unperturbed(batch).probability).square().view(2, 4, 100)
    assert torch.allclose(single.mean(2), expected, rtol=1e-4)
    assert ((ten - expected).abs() / expected).mean() < 0.3 * (single.std(2) / 100**0.5 / expected).mean()


def test_grey_images_of_any_shape_and_two_classes():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    network, images, maps = nn.Sequential(*layers).eval(), torch.rand(3, 1, 12, 10), torch.rand(3, 12, 10)
    targets = torch.tensor([0, 1, 0])
    metric = quantus.FaithfulnessEstimate(features_in_step=8, perturb_baseline="black", disable_warnings=True)
    theirs = metric(network, images.numpy(), targets.numpy(), maps[:, None].numpy(), device="cpu")
    values = score("faithfulness_estimate", network, images, targets, maps, features_per_step=8)
    assert np.abs(values.numpy() - theirs).max() < 1e-5
