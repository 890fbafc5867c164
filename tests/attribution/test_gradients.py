import captum.attr
import torch

from scl_ray.attribution import Batch, explain, explain_many
from scl_ray.attribution.cam import unit_range


def test_saliency_equals_captum(network, images, targets):
    theirs = captum.attr.Saliency(network).attribute(images.clone().requires_grad_(), target=targets).amax(1)
    assert (explain(network, images, targets, "saliency") - theirs).abs().max() < 1e-5


def test_input_x_gradient_equals_captum(network, images, targets):
    theirs = captum.attr.InputXGradient(network).attribute(images.clone().requires_grad_(), target=targets)
    ours = explain(network, images, targets, "input_x_gradient")
    assert (ours - theirs.detach().sum(1)).abs().max() < 1e-5
    assert ours.min() < 0 < ours.max()


def test_integrated_gradients_equals_captum(network, images, targets):
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
