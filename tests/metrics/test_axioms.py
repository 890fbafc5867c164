import copy

import numpy as np
import pytest
import quantus
import torch
from torch import nn

from scl_ray import attribution
from scl_ray.attribution import Batch, explain
from scl_ray.metrics import score
from scl_ray.metrics.axioms import ShiftedEmbedding, explain_shifted


@pytest.fixture(scope="module")
def chosen(network, colour):
    with torch.no_grad():
        return network(colour).argmax(1)


def relative(first, second):
    return np.abs(first - second) / (np.abs(first) + np.abs(second))


@pytest.mark.parametrize("baseline", ["zero", "minimum"])
def test_completeness_equals_the_formula(exact, network, colour, chosen, baseline):
    maps = explain(network, colour, chosen, "input_x_gradient")
    for i in range(8):
        image = colour[i].double()
        lost = torch.full_like(image, 0.0 if baseline == "zero" else float(image.min()))
        with torch.no_grad():
            scores = exact(torch.stack([image, lost]))[:, chosen[i]]
        hand = relative(float(sum(maps[i].double().flatten())), float(scores[0] - scores[1]))
        ours = score("completeness", network, colour[i : i + 1], chosen[i : i + 1], maps[i : i + 1], baseline=baseline)
        assert abs(ours - hand) < 1e-5


def test_integrated_gradients_are_complete_and_others_are_not(network, images, targets):
    batch = Batch(network, images[:4], targets[:4])
    maps = attribution.explain_many(batch, ["integrated_gradients[steps=100]", "input_x_gradient", "grad_cam"])
    means = [score("completeness", network, images[:4], targets[:4], found).mean() for found in maps.values()]
    assert means[0] < 0.01
    assert min(means[1:]) > 0.1
    opposite = -maps["integrated_gradients[steps=100]"]
    assert score("completeness", network, images[:4], targets[:4], opposite).min() == 1


def test_non_sensitivity_equals_the_definition(exact, network, images, targets, maps):
    small = nn.functional.interpolate(images, (16, 16), mode="bilinear")
    # Where the network is sure, no single pixel matters.
    with torch.no_grad():
        unsure = network(small).softmax(1).amax(1).argsort()[:3]
    small, targets = small[unsure], targets[unsure]
    # Some pixels have no attribution, and others next to none.
    given = maps["grad_cam"][unsure, ::2, ::2].clone()
    given[given < 0.3] *= 1e-5
    ours = score("non_sensitivity", network, small, targets, given, patch_size=1)
    for i in range(3):
        changed = small[i].double().repeat(257, 1, 1, 1)
        for pixel in range(256):
            changed[pixel, :, pixel // 16, pixel % 16] = small[i].min()
        with torch.no_grad():
            probability = exact(changed).softmax(1)[:, targets[i]]
        insensitive = (probability[:256] - probability[256]).abs() < 1e-5
        unattributed = given[i].flatten() < 1e-5 * given[i].max()
        assert 0 < insensitive.sum() < 256
        assert 0 < unattributed.sum() < 256
        assert abs(ours[i] - (insensitive != unattributed).double().mean()) < 1e-6


def test_non_sensitivity_of_squares(network, colour, chosen):
    maps = torch.zeros(8, 32, 32)
    maps[:, 5, 7] = 1.0  # one square of 64 has an attribution
    sensitive = []
    for top in range(0, 32, 4):
        for left in range(0, 32, 4):
            changed = colour.clone()
            changed[:, :, top : top + 4, left : left + 4] = colour.amin((1, 2, 3)).view(-1, 1, 1, 1)
            with torch.no_grad():
                answers = (net(given).double().softmax(1) for net, given in ((network, changed), (network, colour)))
            before, after = (answer[torch.arange(8), chosen] for answer in answers)
            sensitive.append((before - after).abs() >= 1e-5)
    attributed = torch.arange(64) == 9
    hand = (torch.stack(sensitive, 1) != attributed).double().mean(1)
    ours = score("non_sensitivity", network, colour, chosen, maps)
    assert torch.allclose(ours.double(), hand, atol=1e-6)


def test_input_invariance_of_gradients_cams_and_products(network, colour, chosen):
    given = (network, colour, chosen)
    for method in ("saliency", "grad_cam"):
        maps = explain(*given, method)
        assert score("input_invariance", *given, maps, method=method).max() < 1e-5
    maps = explain(*given, "input_x_gradient")
    # The gradient stays, and the image is lowered by 0.5.
    inputs = colour.clone().requires_grad_()
    gradient = torch.autograd.grad(network(inputs)[torch.arange(8), chosen].sum(), inputs)[0].double()
    lowered = ((colour - 0.5) * gradient).sum(1)
    norm = [values.double().flatten(1).norm(dim=1) for values in (maps - lowered, maps, lowered)]
    ours = score("input_invariance", *given, maps, method="input_x_gradient", shift=0.5)
    assert (ours - norm[0] / (norm[1] + norm[2])).abs().max() < 1e-5
    assert ours.min() > 0.05


@pytest.mark.parametrize("method", ["saliency", "input_x_gradient", "integrated_gradients[steps=5]", "grad_cam"])
def test_input_invariance_agrees_with_quantus(method):
    # Quantus shifts the bias of the first layer, which is exact without padding, and answers yes or no for an image. It
    # leaves the first value of an image where it was, unless the shift is given to it.
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    network = nn.Sequential(*layers, nn.Linear(6, 4)).eval()
    images, targets = torch.randn(5, 3, 14, 14), torch.tensor([0, 1, 2, 3, 0])
    maps = explain(network, images, targets, method)

    def again(model, inputs, targets, **parameters):
        given = torch.as_tensor(inputs, dtype=torch.float32), torch.as_tensor(targets)
        return 50 * explain(model.eval(), *given, method)[:, None].numpy()

    metric = quantus.InputInvariance(
        input_shift=-1, perturb_func=lambda arr, input_shift, **options: arr + input_shift, disable_warnings=True
    )
    theirs = metric(
        network, images.numpy(), targets.numpy(), 50 * maps[:, None].numpy(), explain_func=again, device="cpu"
    )
    ours = score("input_invariance", network, images, targets, maps, method=method)
    assert ((ours < 1e-4).numpy() == np.asarray(theirs)).all()
    assert len(set(theirs)) == 1


def test_the_shifted_network_is_the_same_one(images, network):
    shifted = ShiftedEmbedding(network, 0.7)
    with torch.no_grad():
        assert (shifted(images[:4] - 0.7) - network(images[:4])).abs().max() < 1e-5
        assert (shifted.embed(images[:4] - 0.7) - network.embed(images[:4])).abs().max() < 1e-5


@pytest.mark.parametrize("method", ["lrp", "deep_lift[target=prototype]", "saliency[target=label_free]"])
def test_networks_that_are_rewritten_and_embeddings_are_shifted_too(network, colour, chosen, method):
    maps = explain(network, colour[:2], chosen[:2], method)
    values = score("input_invariance", network, colour[:2], chosen[:2], maps, method=method)
    assert (values < 1e-5).all() if "saliency" in method else (values > 0.01).all()


def test_pixel_space_and_reference_shift_along(network, images, targets, digits, monkeypatch):
    seen = []
    monkeypatch.setattr(attribution, "explain_many", lambda batch, methods: seen.append(batch))
    batch = Batch(
        network, images[:3], targets[:3], mean=digits.mean, std=digits.std, reference=images[5:9], image_ids=[4, 2, 9]
    )
    for _ in range(2):
        explain_shifted(batch, {"saliency": None}, "", shift=1.0, protocol="corrected")
    first, second = seen
    assert torch.allclose(first.to_pixels(first.images), batch.to_pixels(images[:3]), atol=1e-6)
    assert torch.allclose(first.reference, images[5:9] - 1)
    assert first.image_ids == [4, 2, 9]
    assert first.model is second.model  # with all that is kept of it
    assert first.kept is second.kept is not batch.kept


def test_the_network_is_left_as_it_was(network, colour, chosen):
    before = copy.deepcopy(network.state_dict())
    maps = explain(network, colour, chosen, "saliency")
    score("input_invariance", network, colour, chosen, maps, method="saliency")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network.training
    assert all(parameter.grad is None for parameter in network.parameters())
