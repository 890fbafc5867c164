import captum.attr
import numpy as np
import torch

from scl_ray.attribution import Batch, explain, explain_many
from scl_ray.attribution.cam import unit_range

MEAN, STD = [0.5, 0.4, 0.3], [0.5, 0.25, 0.2]


def test_saliency_equals_captum(network, images, targets):
    theirs = captum.attr.Saliency(network).attribute(images.clone().requires_grad_(), target=targets).amax(1)
    assert (explain(network, images, targets, "saliency") - theirs).abs().max() < 1e-5


def test_input_x_gradient_equals_captum(network, images, targets):
    theirs = captum.attr.InputXGradient(network).attribute(images.clone().requires_grad_(), target=targets)
    ours = explain(network, images, targets, "input_x_gradient")
    assert (ours - theirs.detach().sum(1)).abs().max() < 1e-5
    assert ours.min() < 0 < ours.max()


def test_integrated_gradients_equals_captum(network, images, targets):
    images, targets = images[:4], targets[:4]
    for steps in (50, 7):
        theirs = captum.attr.IntegratedGradients(network).attribute(images, target=targets, n_steps=steps).sum(1)
        ours = explain(network, images, targets, "integrated_gradients", steps=steps)
        assert (ours - theirs).abs().max() < 1e-5


def test_integrated_gradients_add_up_to_the_score(network, images, targets):
    images, targets = images[:8], targets[:8]
    ours = explain(network, images, targets, "integrated_gradients", steps=100)
    with torch.no_grad():
        gained = (network(images) - network(torch.zeros_like(images))).gather(1, targets[:, None])[:, 0]
    assert (ours.sum((1, 2)) - gained).abs().max() < 0.02 * gained.abs().max()


def test_maps_do_not_depend_on_the_batch(network, images, targets):
    methods = ["grad_cam", "eigen_cam", "saliency", "input_x_gradient", "integrated_gradients[steps=8]"]
    together = explain_many(Batch(network, images, targets), methods)
    backwards = explain_many(Batch(network, images.flip(0), targets.flip(0)), methods)
    for method in methods:
        alone = torch.cat([explain(network, images[i : i + 5], targets[i : i + 5], method) for i in range(0, 32, 5)])
        assert (unit_range(together[method]) - unit_range(alone)).abs().max() < 1e-5
        assert (unit_range(together[method]) - unit_range(backwards[method].flip(0))).abs().max() < 1e-5


def test_smooth_grad_equals_captum_with_the_same_noise(monkeypatch, network, colour, targets):
    batch = Batch(network, colour, targets[:4], mean=MEAN, std=STD, image_ids=[7, 3, 12, 5], at_once=5)
    spec = "smooth_grad[noise=0.2,samples=6]"
    noise = 0.2 * batch.normal(spec, 6, 3, 32, 32) / torch.tensor(STD).view(3, 1, 1)
    monkeypatch.setattr(torch, "normal", lambda mean, std: noise.flatten(0, 1))
    tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(network))
    theirs = tunnel.attribute(colour, nt_samples=6, target=targets[:4], abs=False).abs().amax(1)
    ours = explain_many(batch, [spec])[spec]
    assert (ours - theirs).abs().max() < 1e-5
    assert ours.max() > 0.01


def test_gradient_shap_equals_captum_with_the_same_draws(monkeypatch, network, colour, images, targets):
    reference = images[8:13]
    batch = Batch(network, colour, targets[:4], image_ids=[7, 3, 12, 5], reference=reference, at_once=5)
    spec = "gradient_shap[samples=6]"
    streams = batch.generators(spec)
    places = np.concatenate([stream.random(6, np.float32) for stream in streams])
    chosen = np.concatenate([stream.integers(5, size=6) for stream in streams])
    monkeypatch.setattr(np.random, "choice", lambda size, shape: chosen)
    monkeypatch.setattr(np.random, "uniform", lambda low, high, shape: places)
    theirs = captum.attr.GradientShap(network).attribute(
        colour, baselines=reference, n_samples=6, stdevs=0.0, target=targets[:4]
    )
    ours = explain_many(batch, [spec])[spec]
    assert (ours - theirs.sum(1)).abs().max() < 1e-5
    assert len(set(chosen)) > 1


def test_gradient_shap_adds_up_to_the_score_minus_the_baselines_mean_score(network, images, targets):
    reference = images[8:12]
    with torch.no_grad():
        score = network(images[:1])[:, targets[0]]
        for given, baselines in ((reference, reference), (None, torch.zeros_like(reference))):
            ours = explain(network, images[:1], targets[:1], "gradient_shap", samples=400, reference=given)
            gained = score - network(baselines)[:, targets[0]].mean()
            # More than three standard errors of 400 draws.
            assert (ours.sum() - gained).abs() < 0.15 * gained.abs()


def test_draws_are_the_images_own(network, images, targets):
    for method in ("smooth_grad[samples=4]", "gradient_shap[samples=4]"):
        given = {"image_ids": range(10, 16), "reference": images[20:], "mean": MEAN, "std": STD}
        whole = Batch(network, images[:6], targets[:6], **given)
        order = [4, 1, 3]
        part = Batch(network, images[order], targets[order], at_once=3, **{**given, "image_ids": [14, 11, 13]})
        ours, theirs = explain_many(whole, [method])[method][order], explain_many(part, [method])[method]
        assert (unit_range(ours) - unit_range(theirs)).abs().max() < 1e-5
        other = explain_many(Batch(network, images[:6], targets[:6], seed=1, **given), [method])[method][order]
        assert (unit_range(ours) - unit_range(other)).abs().max() > 0.01


def test_global_random_numbers_are_left_alone(network, images, targets):
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002  # the state that others may rely on
    methods = ["lime[patch=16,samples=16]", "kernel_shap[patch=16,samples=16]", "smooth_grad[samples=2]",
               "gradient_shap[samples=2]", "random"]  # fmt: skip
    explain_many(Batch(network, images[:2], targets[:2]), methods)
    drawn = torch.rand(1), np.random.rand()  # noqa: NPY002
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    assert drawn == (torch.rand(1), np.random.rand())  # noqa: NPY002
