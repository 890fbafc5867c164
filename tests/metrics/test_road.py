import numpy as np
import pytest
import quantus
import torch
from quantus.functions.perturb_func import noisy_linear_imputation

from scl_ray.attribution import Batch
from scl_ray.metrics import cost, score, score_many
from scl_ray.metrics.road import impute


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.99])
def test_imputation_equals_quantus(colourful, maps, share):
    """Its function works on colour; what fails is what calls it. Removed: a blob (CAM) and scattered pixels."""
    attributions = torch.cat([maps["grad_cam"][:3], maps["input_x_gradient"][3:6]])
    order = attributions.flatten(1).argsort(descending=True)[:, : int(1024 * share)]
    removed = torch.zeros(6, 1024, dtype=torch.bool).scatter_(1, order, True).view(6, 32, 32)
    ours = impute(colourful, removed)
    assert ours.dtype == torch.float32
    assert torch.equal(ours.masked_select(~removed[:, None]), colourful.masked_select(~removed[:, None]))
    for i, image in enumerate(colourful.double().numpy()):
        theirs = noisy_linear_imputation(image, order[i].numpy(), noise=0.0)
        assert np.abs(ours[i].numpy() - theirs).max() < 1e-5


def test_imputation_by_the_definition():
    """Every removed pixel is the weighted mean of its neighbours, at the border of those that there are."""
    images = torch.randn(2, 4, 9, 14, generator=torch.Generator().manual_seed(0))
    removed = torch.rand(2, 9, 14, generator=torch.Generator().manual_seed(1)) < 0.7
    filled = impute(images, removed).double().numpy()
    for n, row, column in removed.nonzero().tolist():
        total, weights = np.zeros(4), 0.0
        for down in (-1, 0, 1):
            for across in (-1, 0, 1):
                if (down or across) and 0 <= row + down < 9 and 0 <= column + across < 14:
                    weight = 1 / 12 if down and across else 1 / 6
                    total += weight * filled[n, :, row + down, column + across]
                    weights += weight
        assert np.abs(filled[n, :, row, column] - total / weights).max() < 1e-5
    assert torch.equal(impute(images, torch.zeros_like(removed)), images)


def test_what_the_network_sees(monkeypatch, network, colourful, targets, maps, digits):
    """Imputed images under the noise of each image, in pixel space, by Quantus' function with the same numbers."""
    seen = []
    scores = Batch.scores
    monkeypatch.setattr(
        Batch, "scores", lambda batch, images, *rest: seen.append(images) or scores(batch, images, *rest)
    )
    batch = Batch(network, colourful, targets[:6], mean=digits.mean, std=digits.std, seed=3, image_ids=range(10, 16))
    cell, attributions = ("saliency", "road[noise=0.05,percent_per_step=30]"), maps["saliency"][:6]
    score_many(batch, {"saliency": attributions}, [cell])
    images = torch.cat(seen).view(6, 3, 3, 32, 32)
    drawn = batch.normal("road", 3, 32, 32).double().numpy() / np.array(digits.std).reshape(3, 1, 1)
    for i, image in enumerate(colourful.double().numpy()):
        order = np.argsort(-attributions[i].numpy().ravel(), kind="stable")
        for step, percent in enumerate((30, 60, 90)):
            indices = order[: int(1024 * percent / 100)]
            monkeypatch.setattr(np.random, "randn", lambda *shape: drawn[i].reshape(3, -1)[:, indices])  # noqa: B023
            theirs = noisy_linear_imputation(image, indices, noise=0.05)
            assert np.abs(images[i, step].numpy() - theirs).max() < 1e-5


def test_accuracy_at_each_percentage_equals_quantus(grey, images, targets, maps):
    # Grey, since Quantus fails on colour; the noise, which the two draw in ways of their own, as good as none.
    percentages = list(range(10, 100, 10))
    labels = targets.clone()
    labels[:8] = (labels[:8] + 1) % 10  # some are wrong from the start
    metric = quantus.ROAD(percentages=percentages, noise=0.0, normalise=False, disable_warnings=True)
    theirs = metric(grey, images[:, :1].numpy(), labels.numpy(), maps["saliency"][:, None].numpy(), device="cpu")
    cell = ("saliency", "road[noise=1e-9]")
    ours = score_many(Batch(grey, images[:, :1], labels), maps, [cell])[cell]
    assert np.abs(ours.curve.mean(0).numpy() - [theirs[percent] for percent in percentages]).max() < 1e-6
    assert torch.allclose(ours.values, ours.curve.mean(1))
    assert 0.1 < ours.values.mean() < 0.9
    assert ours.curve.mean(0)[0] > ours.curve.mean(0)[-1]


def test_values_do_not_depend_on_the_pass_or_the_batch(network, colourful, targets, maps):
    before, state = colourful.clone(), np.random.get_state()[1].copy()  # noqa: NPY002
    cell, attributions = ("saliency", "road"), maps["saliency"][:6]
    together = score_many(Batch(network, colourful, targets[:6]), {"saliency": attributions}, [cell])[cell].values
    for at_once, part in ((5, slice(0, 4)), (64, slice(4, 6)), (1, slice(1, 2))):
        batch = Batch(network, colourful[part], targets[:6][part], at_once=at_once, image_ids=range(6)[part])
        assert torch.equal(score_many(batch, {"saliency": attributions[part]}, [cell])[cell].values, together[part])
    assert torch.equal(colourful, before)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_cost_and_bad_parameters(network, images, targets, maps):
    assert cost([("saliency", "road"), ("grad_cam", "road")], 32) == 2 * 9
    assert cost([("saliency", "road[percent_per_step=2]")], 224) == 49
    with pytest.raises(ValueError, match="percent_per_step=100 leaves no pixel at the first step; take fewer than 100"):
        score("road", network, images, targets, maps["saliency"], percent_per_step=100)
