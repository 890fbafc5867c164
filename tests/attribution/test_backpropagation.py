import captum.attr
import pytest
import torch
import torch.nn.functional as F
from attribution.by_hand import decided_by_a_patch, separated
from torch import nn

from scl_ray import attribution
from scl_ray.attribution import Batch, explain, explain_many
from scl_ray.checkpoint import ExplainedNetwork
from scl_ray.readout import ReadOut

METHODS = ["guided_backprop", "deconvolution", "guided_grad_cam"]


@pytest.fixture(scope="module")
def by_hand(network):
    return separated(network)


@pytest.mark.filterwarnings("ignore:Setting backward hooks")
@pytest.mark.parametrize(
    ("method", "theirs"),
    [("guided_backprop", captum.attr.GuidedBackprop), ("deconvolution", captum.attr.Deconvolution)],
)
def test_equals_captum_on_a_network_of_separate_relus(method, theirs, network, by_hand, images, targets):
    wanted = theirs(by_hand).attribute(images.clone().requires_grad_(), target=targets).abs().amax(1)
    ours = explain(network, images, targets, method)
    assert wanted.amax() > 1e-3
    assert (ours - wanted).abs().max() < 1e-5
    # Captum on the network itself, whose ReLUs are shared modules, and a plain gradient are something else.
    assert (ours - explain(network, images, targets, "saliency")).abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore:Setting backward hooks")
def test_guided_grad_cam_equals_captum(network, by_hand, images, targets):
    theirs = captum.attr.GuidedGradCam(by_hand, by_hand[0].blocks[-1]["relu"])
    wanted = theirs.attribute(images.clone().requires_grad_(), target=targets, interpolate_mode="bilinear")
    ours = explain(network, images, targets, "guided_grad_cam")
    assert wanted.abs().amax() > 1e-4
    assert (ours - wanted.detach().abs().amax(1)).abs().max() < 1e-5


@pytest.mark.filterwarnings("ignore:Setting backward hooks")
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("target", attribution.TARGETS)
def test_every_target(target, normalise, network, by_hand, trained, images, targets):
    readout = ReadOut(trained.weight, trained.bias, normalise=normalise, temperature=0.5)
    model = ExplainedNetwork(trained.backbone, readout, trained.prototypes).eval()
    given = {"reference": images, "reference_labels": targets}
    ours = explain(model, images[:6], targets[:6], "guided_backprop", target=target, **given)

    def score(images, number):
        features = by_hand[0](images)
        unit = F.normalize(features, dim=1)
        others = F.normalize(by_hand[0](all_images), dim=1).detach()
        same = targets == targets[number]
        return {
            "class_score": readout(features)[:, targets[number]],
            "prototype": unit @ trained.prototypes[targets[number]],
            "label_free": features @ by_hand[0](all_images[number : number + 1]).detach()[0],
            "corpus": unit @ (others[same].mean(0) - others[~same].mean(0)),
        }[target]

    all_images = images
    for number in range(6):

        class Scalar(nn.Module):
            def __init__(self):
                super().__init__()
                self.network = by_hand[0]

            def forward(self, x, number=number):
                return score(x, number)

        image = images[number : number + 1].clone().requires_grad_()
        wanted = captum.attr.GuidedBackprop(Scalar()).attribute(image).abs().amax(1)
        assert (ours[number] - wanted).abs().max() < 1e-5 * wanted.max().clamp_min(1)


def test_maps_do_not_depend_on_the_batch(network, images, targets):
    together = explain_many(Batch(network, images[:9], targets[:9]), METHODS)
    for method in METHODS:
        alone = torch.cat([explain(network, images[:9][i : i + 4], targets[:9][i : i + 4], method) for i in (0, 4, 8)])
        assert (together[method] - alone).abs().max() < 1e-5


def test_the_model_stays_as_it_was(network, images, targets):
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    given = images.clone()
    explain_many(Batch(network, images, targets), METHODS)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in network.modules())
    assert not network.training
    assert torch.equal(images, given)
    assert not images.requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_a_network_without_relu_is_refused(method, images):
    smooth = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(ValueError, match=f"{method} changes how ReLUs pass gradients back, and Sequential has none"):
        attribution.check(Batch(smooth.eval(), images[:1], torch.tensor([0])), [method])


def test_finds_the_patch_that_decides():
    model, images, targets, masks = decided_by_a_patch()
    with torch.no_grad():
        assert (model(images).argmax(1) == targets).all()
    maps = explain_many(Batch(model, images, targets), METHODS)
    for method in METHODS:
        # A patch is 16 of 400 pixels: by chance 4 % of the highest lie on it.
        highest = maps[method].flatten(1).topk(16).indices
        assert masks.flatten(1).gather(1, highest).float().mean() > 0.3, method
