import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from quick import QUICK_METHODS
from torch import nn

from scl_ray.attribution import METHODS, Batch, ask, check, cost, explain, explain_many, explains_class, resolve


@pytest.fixture(scope="module")
def batch(network, images, targets, reference):
    return Batch(network, images[:4], targets[:4], reference=reference[0], reference_labels=reference[1])


@pytest.fixture(scope="module")
def found(batch):
    return explain_many(batch, QUICK_METHODS)


def test_every_method_explains_every_image(found):
    assert set(found) == set(QUICK_METHODS)
    for maps in found.values():
        assert maps.shape == (4, 32, 32)
        assert maps.dtype == torch.float32
        assert maps.isfinite().all()
        assert not maps.requires_grad


def test_what_the_registry_says_of_every_method():
    for name, method in METHODS.items():
        assert method.defaults["protocol"] == "corrected"
        assert method.citation or name in ("random", "constant")
        # What explains a score can be asked about any.
        assert ("target" in method.parameters) == method.class_discriminative
        assert method.cost(method.defaults, 32) >= 0


@pytest.mark.parametrize("spec", QUICK_METHODS)
def test_one_image_at_a_time_is_the_same_as_all_together(batch, found, reference, spec):
    alone = [
        explain(
            batch.model, batch.images[n : n + 1], batch.targets[n : n + 1], spec,
            image_ids=[n], reference=reference[0], reference_labels=reference[1],
        )
        for n in (2, 0)
    ]  # fmt: skip
    together = found[spec][[2, 0]]
    apart = (torch.cat(alone) - together).abs()
    if spec == "lrp":
        # A ReLU whose input is zero but for float32's rounding passes on what its terms cancel in, or does not: then
        # the few pixels that it sees change. float64 tells it from zero, and there the bound is everybody's.
        assert apart.sum() <= 0.01 * together.abs().sum()
        assert (apart <= 1e-5).double().mean() > 0.9
        exact, exactly = copy.deepcopy(batch.model).double(), batch.images.double()
        together = explain(exact, exactly, batch.targets, spec)[[2, 0]]
        alone = [explain(exact, exactly[n : n + 1], batch.targets[n : n + 1], spec, image_ids=[n]) for n in (2, 0)]
        apart = (torch.cat(alone) - together).abs()
    # Maps that are not scaled to [0,1] are as large as the score's gradients: float32 rounds them by that measure.
    assert apart.max() <= 1e-5 * max(1.0, found[spec].abs().max().item())


def test_only_class_discriminative_methods_depend_on_the_class(batch, found):
    other = explain_many(batch.but(targets=(batch.targets + 1) % 10), QUICK_METHODS)
    for spec, maps in found.items():
        assert torch.equal(maps, other[spec]) != explains_class(spec), spec


def test_randomised_weights_change_the_maps(batch, found):
    drawn = copy.deepcopy(batch.model)
    for module in drawn.backbone.modules():
        if isinstance(module, nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    other = explain_many(batch.but(model=drawn), QUICK_METHODS)
    for spec, maps in found.items():
        # Of controls nothing changes.
        similarity = F.cosine_similarity(maps.flatten(1), other[spec].flatten(1)).nan_to_num(0).mean()
        assert (similarity > 0.999) == (spec in ("random", "edge", "constant")), (spec, similarity)


def test_explaining_leaves_the_network_and_the_images_as_they_were(network, images, targets, reference):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.zero_grad()
    given, random_state = images[:2].clone(), torch.get_rng_state()
    numpy_state = np.random.get_state()[1].tolist()  # noqa: NPY002  # the state that libraries use
    explain_many(Batch(network, given, targets[:2], reference=reference[0]), QUICK_METHODS)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(given, images[:2])
    assert not given.requires_grad
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert np.random.get_state()[1].tolist() == numpy_state  # noqa: NPY002


def test_a_spec_and_keywords_are_the_same(network, images, targets):
    spec = explain(network, images[:4], targets[:4], "integrated_gradients[steps=3]")
    keyword = explain(network, images[:4], targets[:4], "integrated_gradients", steps=3)
    assert torch.equal(spec, keyword)
    assert resolve("integrated_gradients", steps=50, protocol="corrected").spec == "integrated_gradients"


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        ("gradcam", {}, "there is no method 'gradcam'; did you mean 'grad_cam'?"),
        ("grad_cam", {"step": 3}, "grad_cam has no parameter 'step'; choose from protocol"),
        ("integrated_gradients", {"step": 3}, "did you mean 'steps'?"),
        ("integrated_gradients", {"steps": 0}, "steps must be a whole number of at least 1, not 0"),
        ("integrated_gradients", {"steps": True}, "not True"),
        ("grad_cam", {"protocol": "paper"}, "protocol must be corrected or published, not 'paper'"),
        ("nowhere_at_all:method", {}, "nowhere_at_all:method: cannot be imported"),
    ],
)
def test_a_bad_method_is_refused_in_one_sentence(network, images, targets, method, parameters, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the message is compared below
        explain(network, images[:1], targets[:1], method, **parameters)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_network_in_training_mode_is_refused(images, targets):
    network = nn.Sequential(nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match="training mode"):
        explain(network, images, targets, "saliency")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": torch.tensor([3])}, r"targets must be \(4,\) int64, a class for each image, not \(1,\)"),
        ({"targets": torch.zeros(4)}, "of torch.float32"),
        ({"images": torch.zeros(4, 3, 32, 32, dtype=torch.uint8)}, "normalised floats, not .* of torch.uint8"),
        ({"images": torch.zeros(3, 32, 32)}, r"images must be \(N,C,H,W\)"),
        ({"image_ids": [7]}, "image_ids must be 4 numbers"),
    ],
)
def test_what_does_not_go_together_is_refused(batch, change, message):
    for spec in ("grad_cam", "random", "occlusion"):
        with pytest.raises(ValueError, match=message):
            explain_many(batch.but(**change), [spec])


def test_a_part_in_training_mode_is_refused_and_stays_so(network, images, targets):
    half = copy.deepcopy(network)
    half.backbone.layer1.train()
    for spec in ("saliency", "occlusion", "saliency[target=prototype]"):
        with pytest.raises(ValueError, match="the model's backbone.layer1 is in training mode"):
            explain(half, images[:2], targets[:2], spec)
    ask(Batch(half, images[:2], targets[:2]), "label_free").scalar()
    assert half.backbone.layer1.training


@pytest.mark.parametrize("spec", ["saliency", "integrated_gradients", "smooth_grad", "gradient_shap"])
def test_a_network_without_gradients_is_refused_before_any_work(network, images, targets, spec):
    class Fixed(nn.Module):
        @torch.no_grad()
        def forward(self, x):
            return network(x)

    with pytest.raises(ValueError, match="computes its scores without gradients"):
        check(Batch(Fixed().eval(), images[:1], targets[:1]), [spec])


def test_a_question_without_an_answer_is_refused_before_any_work(network, images, targets):
    with pytest.raises(ValueError, match="give reference="):
        check(Batch(network, images[:1], targets[:1]), ["occlusion[target=corpus]"])


def test_the_users_own_method(tmp_path, monkeypatch, network, images, targets):
    (tmp_path / "brightness_method.py").write_text(
        "def brightness(model, images, targets, gain=2.0):\n    return gain * images.mean(1)\n"
        "def flat(model, images, targets):\n    return images\n"
        "def demanding(model, images, targets, gain):\n    return images.mean(1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    name = "brightness_method:brightness"
    assert torch.equal(explain(network, images, targets, name), 2 * images.mean(1))
    assert torch.equal(explain(network, images, targets, f"{name}[gain=3]"), 3 * images.mean(1))
    assert resolve(name).entry.defaults == {"protocol": "corrected", "gain": 2.0}
    assert resolve(name, protocol="published").spec == f"{name}[protocol=published]"
    with pytest.raises(ValueError, match=r"gave maps of shape \(32, 3, 32, 32\)"):
        explain(network, images, targets, "brightness_method:flat")
    with pytest.raises(ValueError, match="give gain a default value"):
        resolve("brightness_method:demanding")


def test_cost_counts_shared_passes_once():
    assert cost(["grad_cam", "eigen_cam"], 32) == 1
    assert cost(["grad_cam", "saliency", "input_x_gradient"], 32) == 3
    assert cost(["grad_cam", "saliency"], 32, shared=True) == 2
    assert cost(["grad_cam", "integrated_gradients[steps=10]"], 32) == 31
