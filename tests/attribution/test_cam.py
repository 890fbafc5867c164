import copy

import numpy as np
import pytest
import torch
import torchvision
from pytorch_grad_cam import (
    EigenCAM,
    EigenGradCAM,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    XGradCAM,
    base_cam,
)
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection, get_2d_projection_with_sign_correction
from threadpoolctl import threadpool_limits
from torch import nn

from scl_ray.attribution import Batch, explain, explain_many, shared_forward, shared_passes
from scl_ray.attribution.cam import METHODS, unit_range
from scl_ray.attribution.layers import cam_layer
from scl_ray.attribution.passes import backward, forward

RESIZE = 1e-4  # grad-cam resizes with OpenCV


def test_grad_cam_equals_grad_cam_library(network, images, targets):
    wanted = [ClassifierOutputTarget(int(target)) for target in targets]
    # grad-cam leaves gradients on the parameters of what it is given.
    given = copy.deepcopy(network)
    theirs = GradCAM(given, [given.cam_layer])(images, wanted)
    for protocol in ("corrected", "published"):
        ours = explain(network, images, targets, "grad_cam", protocol=protocol)
        assert ours.dtype == torch.float32
        assert np.abs(ours.numpy() - theirs).max() < RESIZE


@pytest.mark.parametrize("where", ["last block", "in the middle"])
@pytest.mark.parametrize(
    ("method", "peer"),
    [
        ("grad_cam", GradCAM),
        ("grad_cam_plus_plus", GradCAMPlusPlus),
        ("hires_cam", HiResCAM),
        ("x_grad_cam", XGradCAM),
        ("layer_cam", LayerCAM),
        ("eigen_cam", EigenCAM),
        ("eigen_grad_cam", EigenGradCAM),
    ],
)
@threadpool_limits.wrap(1, user_api="blas")
def test_published_cams_equal_grad_cam_library(monkeypatch, network, images, targets, method, peer, where):
    # Before pooling and a linear layer the gradient is the same at every position, and several CAMs agree.
    network = copy.deepcopy(network)  # on whose parameters grad-cam leaves gradients
    layer = network.cam_layer if where == "last block" else network.backbone.layer2
    images, targets = images[:8], targets[:8]
    ours = explain(network, images, targets, method, layer=layer, protocol="published").numpy()
    wanted = [ClassifierOutputTarget(int(target)) for target in targets]
    assert np.abs(ours - peer(network, [layer])(images, wanted)).max() < RESIZE
    monkeypatch.setattr(base_cam, "scale_cam_image", scale_as_torch_does)
    assert np.abs(ours - peer(network, [layer])(images, wanted)).max() < 1e-5
    if method not in ("grad_cam_plus_plus", "eigen_cam", "eigen_grad_cam"):
        assert np.array_equal(ours, explain(network, images, targets, method, layer=layer).numpy())


def scale_as_torch_does(maps, size=None):
    """grad-cam's own scaling, without OpenCV."""
    maps = torch.from_numpy(maps)
    maps = maps - maps.amin((1, 2), keepdim=True)
    maps = maps / (1e-7 + maps.amax((1, 2), keepdim=True))
    if size is not None:
        maps = nn.functional.interpolate(maps[:, None], size[::-1], mode="bilinear")[:, 0]
    return maps.numpy()


def test_corrected_grad_cam_plus_plus_is_the_papers_equation(network, images, targets):
    layer, images, targets = network.backbone.layer2, images[:4], targets[:4]
    passed = forward(network, images, layer)
    slopes = backward(passed, nn.functional.one_hot(targets, 10)).activations.double()
    maps = torch.zeros(passed.activations[:, 0].shape, dtype=torch.float64)
    for n, activations in enumerate(passed.activations.detach().double()):
        for channel, slope in zip(activations, slopes[n], strict=True):
            weight = 0.0
            for g in slope.flatten().tolist():
                if g > 0:
                    weight += g * g**2 / (2 * g**2 + channel.sum().item() * g**3)
            maps[n] += weight * channel
    resized = nn.functional.interpolate(maps.relu()[:, None], images.shape[-2:], mode="bilinear")[:, 0]
    ours = explain(network, images, targets, "grad_cam_plus_plus", layer=layer)
    assert (ours - unit_range(resized)).abs().max() < 1e-5
    published = explain(network, images, targets, "grad_cam_plus_plus", layer=layer, protocol="published")
    assert (ours - published).abs().max() > 1e-3


@threadpool_limits.wrap(1, user_api="blas")
def test_corrected_eigen_grad_cam_turns_the_larger_half_up(network, images, targets):
    layer = network.backbone.layer2
    passed = forward(network, images, layer)
    slopes = backward(passed, nn.functional.one_hot(targets, 10)).activations
    products = (passed.activations.detach() * slopes).numpy()
    theirs = torch.from_numpy(get_2d_projection_with_sign_correction(products))
    resized = nn.functional.interpolate(theirs.relu()[:, None], images.shape[-2:], mode="bilinear")[:, 0]
    corrected = explain(network, images, targets, "eigen_grad_cam", layer=layer)
    assert (corrected - unit_range(resized)).abs().max() < 1e-5
    published = explain(network, images, targets, "eigen_grad_cam", layer=layer, protocol="published")
    assert ((corrected - published).abs().amax((1, 2)) > 0.01).any()


@pytest.fixture(scope="session")
def narrow():
    """A network with more positions than channels."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)).eval()


@pytest.mark.parametrize("name", ["network", "narrow"])
@threadpool_limits.wrap(1, user_api="blas")
def test_published_eigen_cam_equals_grad_cam_library(request, name, images, targets):
    network, targets = request.getfixturevalue(name), targets % 4
    layer = cam_layer(network, images[:1])
    theirs = EigenCAM(network, [layer])(images, [ClassifierOutputTarget(0)] * len(images))
    ours = explain(network, images, targets, "eigen_cam", protocol="published")
    assert np.abs(ours.numpy() - theirs).max() < RESIZE


@pytest.mark.parametrize("name", ["network", "narrow"])
@threadpool_limits.wrap(1, user_api="blas")
def test_corrected_eigen_cam_turns_the_larger_half_up(request, name, images, targets):
    network, targets = request.getfixturevalue(name), targets % 4
    passed = shared_forward(Batch(network, images, targets), ["eigen_cam"])["class_score"]
    activations = passed.activations.detach().numpy()
    theirs = torch.from_numpy(get_2d_projection_with_sign_correction(activations))
    resized = nn.functional.interpolate(theirs.relu()[:, None], images.shape[-2:], mode="bilinear")[:, 0]
    corrected = explain(network, images, targets, "eigen_cam")
    assert (corrected - unit_range(resized)).abs().max() < 1e-5
    published = explain(network, images, targets, "eigen_cam", protocol="published")
    arbitrary = get_2d_projection(activations)
    turned = -arbitrary.min((1, 2)) > arbitrary.max((1, 2))
    assert (((corrected - published).abs().amax((1, 2)) > 0.01).numpy() == turned).all()
    assert turned.any() or name == "network"


def test_all_cams_share_one_forward_and_one_backward(network, images, targets):
    forwards, backwards = [], []
    methods = [*METHODS, "saliency", "input_x_gradient"]
    with (
        network.cam_layer.register_forward_hook(lambda *_: forwards.append(1)),
        network.readout.register_full_backward_hook(lambda *_: backwards.append(1)),
    ):
        both = explain_many(Batch(network, images, targets), methods)
    assert (len(forwards), len(backwards), shared_passes(METHODS)) == (1, 1, 1)
    for method, maps in both.items():
        assert (maps - explain(network, images, targets, method)).abs().max() < 1e-5


def test_a_map_without_positive_evidence_is_all_zero(images):
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    ).eval()
    nn.init.constant_(network[-1].weight, -1.0)
    assert (explain(network, images, torch.zeros(len(images), dtype=torch.int64), "grad_cam") == 0).all()


def test_unit_range():
    maps = torch.stack([torch.arange(16.0).view(4, 4) - 3, torch.full((4, 4), 0.3), torch.zeros(4, 4)])
    scaled = unit_range(maps)
    assert (scaled[0].min(), scaled[0].max()) == (0, 1)
    assert (scaled[1:] == 0).all()


@pytest.mark.parametrize(
    ("name", "size", "path"),
    [
        ("resnet18", 64, "layer4.1"),
        ("resnet50", 64, "layer4.2"),
        ("vgg11", 64, "features.20"),
        ("densenet121", 64, "features.norm5"),
        ("mobilenet_v2", 64, "features.18"),
        ("mobilenet_v3_small", 64, "features.12"),
        ("shufflenet_v2_x0_5", 64, "conv5.2"),
        ("efficientnet_b0", 64, "features.8"),
        ("convnext_tiny", 64, "features.7.2"),
        ("regnet_x_400mf", 64, "trunk_output.block4.block4-11"),
        ("googlenet", 64, "inception5b"),
        ("squeezenet1_1", 64, "classifier.2"),
        ("mnasnet0_5", 64, "layers.16"),
    ],
)
def test_the_layer_is_found(name, size, path):
    arguments = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    network = torchvision.models.get_model(name, weights=None, **arguments).eval()
    image = torch.randn(1, 3, size, size)
    assert cam_layer(network, image) is network.get_submodule(path)
    maps = explain(network, image, torch.zeros(1, dtype=torch.int64), "grad_cam")
    assert maps.shape == (1, size, size)


@pytest.mark.parametrize(
    ("network", "size"),
    [
        (torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 16), 32),
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), 32),
        (torchvision.models.resnet18(), 32),
    ],
    ids=["tokens", "fully connected", "shrunk to 1x1"],
)
def test_networks_that_pool_no_maps_are_refused(network, size):
    with pytest.raises(ValueError, match="a CAM needs feature maps that the network pools"):
        explain(network.eval(), torch.randn(1, 3, size, size), torch.zeros(1, dtype=torch.int64), "grad_cam")


def test_a_layer_that_cannot_serve_is_refused(network, images, targets):
    for layer, message in (
        (network.readout, "gives no feature maps"),
        (nn.Conv2d(3, 3, 1), "not part of what the model computes"),
    ):
        with pytest.raises(ValueError, match=message):
            explain(network, images, targets, "grad_cam", layer=layer)
