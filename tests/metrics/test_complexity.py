import copy
import math

import numpy as np
import pytest
import quantus
import torch

from scl_ray.attribution import Batch, shared_forward
from scl_ray.metrics import cost, score, score_many


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


def effective_complexity_by_hand(network, image, target, attribution, levels, step, tolerance):
    """The fewest pixels in float64: every candidate from a loop over the pixels that are kept; and the losses."""

    def probability(given):
        with torch.no_grad():
            return float(network(torch.from_numpy(given)[None])[0].softmax(0)[target])

    height, width = attribution.shape
    magnitudes = {(r, c): abs(float(attribution[r, c])) for r in range(height) for c in range(width)}
    largest = max(magnitudes.values())
    order = sorted(magnitudes, key=lambda pixel: (-round(magnitudes[pixel] / largest * 1e6), pixel))
    before = probability(image)
    for kept in range(step, len(order), step):
        losses = []
        for level in levels:
            given = np.empty_like(image)
            given[:] = level[:, None, None]
            for row, column in order[:kept]:
                given[:, row, column] = image[:, row, column]
            losses.append((probability(given) - before) ** 2)
        if sum(losses) / len(levels) < tolerance:
            return kept
    return len(order)


@pytest.mark.parametrize("method", ["grad_cam", "input_x_gradient"])
@pytest.mark.parametrize("protocol", ["corrected", "published"])
def test_effective_complexity_equals_a_float64_loop_by_hand(network, images, targets, maps, method, protocol):
    exact = copy.deepcopy(network).double()
    mean, std = np.array([0.3, 0.4, 0.5]), np.array([0.3, 0.35, 0.4])
    levels = np.repeat((np.arange(3)[:, None] + 0.5) / 3, 3, 1)
    if protocol == "corrected":
        levels = (levels - mean) / std
    coloured = images[:6] * torch.tensor([1.0, 0.7, 0.4]).view(3, 1, 1)
    ours = score(
        "effective_complexity", network, coloured, targets[:6], maps[method][:6], features_per_step=100, samples=3,
        tolerance=1e-4, protocol=protocol, mean=mean.tolist(), std=std.tolist(),
    )  # fmt: skip
    hand = [
        effective_complexity_by_hand(exact, image, int(target), attribution, levels, 100, 1e-4)
        for image, target, attribution in zip(
            coloured.double().numpy(), targets[:6], maps[method][:6].double().numpy(), strict=True
        )
    ]
    assert ours.tolist() == hand
    assert len(set(hand)) > 1


def test_effective_complexity_keeps_no_more_than_the_tolerance_asks_for(network, images, targets, maps):
    given = (network, images[:8], targets[:8], maps["grad_cam"][:8])
    strict, loose = (score("effective_complexity", *given, samples=2, tolerance=t) for t in (1e-9, 0.05))
    assert (loose <= strict).all()
    assert (loose < strict).any()
    assert score("effective_complexity", *given, samples=1, tolerance=1.1).tolist() == 8 * [32]
    assert (score("effective_complexity", *given, samples=1, features_per_step=2000) == 1024).all()


def test_effective_complexity_takes_the_passes_it_costs(network, images, targets, maps):
    seen = []
    metric = "effective_complexity[features_per_step=100,samples=2]"
    cells = [
        (method, spec) for method in ("grad_cam", "saliency") for spec in (metric, f"{metric[:-1]},tolerance=0.1]")
    ]
    given = {method: maps[method][:4] for method in ("grad_cam", "saliency")}
    batch = Batch(network, images[:4], targets[:4], at_once=7)
    batch = batch.but(passed=shared_forward(batch, []))
    with network.register_forward_hook(lambda module, inputs, output: seen.append(len(output))):
        few = score_many(batch, given, cells)
    # Both tolerances are read from one run.
    assert sum(seen) == 4 * cost(cells, 32) == 4 * 2 * 2 * 10
    assert max(seen) <= 7
    many = score_many(Batch(network, images[:4], targets[:4], at_once=64), given, cells)
    assert all(torch.equal(few[cell].values, many[cell].values) for cell in cells)
