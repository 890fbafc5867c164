import pytest
import torch
from torch import nn

from scl_ray.attribution import METHODS, Batch, cost, explain, explain_many, resolve


def test_every_method_explains_every_image(network, images, targets):
    found = explain_many(Batch(network, images[:4], targets[:4]), list(METHODS))
    for method, maps in found.items():
        assert maps.shape == (4, 32, 32)
        assert maps.dtype == torch.float32
        assert maps.isfinite().all()
        assert not maps.requires_grad
        assert METHODS[method].defaults["protocol"] == "corrected"
        assert METHODS[method].citation


def test_only_class_discriminative_methods_depend_on_the_class(network, images, targets):
    for method, entry in METHODS.items():
        one, other = (explain(network, images[:8], t, method) for t in (targets[:8], (targets[:8] + 1) % 10))
        assert (one - other).abs().max().item() > 0 or not entry.class_discriminative
        assert torch.equal(one, other) or entry.class_discriminative


def test_explaining_leaves_the_network_as_it_was(network, images, targets):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.zero_grad()
    given = images[:4].clone()
    explain_many(Batch(network, given, targets[:4]), list(METHODS))
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(given, images[:4])
    assert not given.requires_grad
    assert not any(module._forward_hooks for module in network.modules())


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
