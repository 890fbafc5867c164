"""timm's models by name: known, refused or built for the image, and the maps that CAMs see."""

import sys
from importlib import metadata

import numpy as np
import pytest
import timm
import torch
from conftest import DEMO
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from scl_ray import backbones, config
from scl_ray.attribution import explain, inference
from scl_ray.attribution.layers import cam_layer
from scl_ray.checkpoint import ExplainedNetwork
from scl_ray.config import InputError
from scl_ray.readout import ReadOut

RESIZE = 1e-4  # grad-cam resizes with OpenCV


@pytest.mark.parametrize(
    ("name", "size", "features"),
    [("resnet10t", 32, 512), ("test_efficientnet", 64, 256), ("vit_tiny_patch16_224", 32, 192)],
)
def test_the_network_is_timms_own_without_its_classifier(name, size, features):
    torch.manual_seed(0)
    ours = backbones.build(f"timm:{name}", size)
    assert ours.training
    torch.manual_seed(0)
    own = {"img_size": size} if name.startswith("vit") else {}
    theirs = timm.create_model(name, pretrained=False, num_classes=0, **own)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(ours.eval()(images), theirs.eval()(images))
    assert backbones.feature_size(ours, size) == features


def tokens(prefix):
    return lambda found: found[:, prefix:].reshape(len(found), 2, 2, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("name", "size", "path", "reshape"),
    [
        ("vit_tiny_patch16_224", 32, "blocks.11.norm1", tokens(1)),
        ("deit_tiny_distilled_patch16_224", 32, "blocks.11.norm1", tokens(2)),
        ("swin_tiny_patch4_window7_224", 64, "norm", lambda maps: maps.permute(0, 3, 1, 2)),
        ("mambaout_femto", 64, "stages.3.blocks.2", lambda maps: maps.permute(0, 3, 1, 2)),
        ("resnet10t", 64, "layer4.0", None),
    ],
)
def test_grad_cam_equals_grad_cam_librarys(name, size, path, reshape):
    torch.manual_seed(0)
    backbone = backbones.build(f"timm:{name}", size)
    torch.manual_seed(0)
    own = {} if name in ("resnet10t", "mambaout_femto") else {"img_size": size}
    theirs = timm.create_model(name, pretrained=False, num_classes=0, **own).eval()
    readout = ReadOut(torch.randn(3, backbones.feature_size(backbone, size)), torch.zeros(3), normalise=False)
    images, targets = torch.randn(2, 3, size, size), torch.tensor([0, 2])
    with GradCAM(nn.Sequential(theirs, readout), [theirs.get_submodule(path)], reshape_transform=reshape) as peer:
        wanted = peer(images, [ClassifierOutputTarget(int(target)) for target in targets])
    maps = explain(ExplainedNetwork(backbone, readout, readout.weight).eval(), images, targets, "grad_cam")
    assert maps.any()
    assert np.abs(maps.numpy() - wanted).max() < RESIZE


def test_the_layer_of_a_convolutional_network_is_found():
    backbone = backbones.build("timm:test_efficientnet", 64).eval()
    assert backbones.cam_layer(backbone) is None
    assert cam_layer(backbone, torch.randn(1, 3, 64, 64)) is backbone.bn2  # with its activation


def test_passes_without_gradients_take_the_fast_form():
    # As a graph it holds a constant of five axes.
    backbone = backbones.build("timm:swin_tiny_patch4_window7_224", 64).eval()
    images = torch.randn(2, 3, 64, 64)
    network = nn.Sequential(backbone, nn.Linear(768, 3)).eval()
    with torch.no_grad():
        wanted = network(images)
        for precision, tolerance in (("float32", inference.TOLERANCE), ("bfloat16", 0.05)):  # eight bits, many layers
            found = inference.build(network, images, precision)(images)
            assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


def load(name):
    return config.load(DEMO, [f"grid.backbone=['{name}']", "grid.seed=0", "grid.objective=cross_entropy"])


def test_a_sweep_names_a_model_of_timm(monkeypatch):
    sweep = load("timm:resnet10t")
    assert sweep.grid.backbone == ["timm:resnet10t"]
    assert sweep.plugin_names() == []  # nothing of it travels as source
    (trial,) = sweep.trials()
    before = trial.identity("data", 32)
    assert before == trial.identity("data", 32)
    monkeypatch.setattr(metadata, "version", lambda package: "another")
    assert before != trial.identity("data", 32)


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("timm:resnet10x", "did you mean timm:resnet10t"),
        ("timm:resnet18.a1_in1k", "did you mean timm:resnet18 "),
        ("timm:qqqqqqqqqqqq", "timm.list_models"),
    ],
)
def test_an_unknown_model_is_refused_when_the_configuration_is_read(name, fix):
    with pytest.raises(InputError, match=f"grid.backbone: timm .* has no model .*{fix}") as error:
        load(name)
    assert "\n" not in str(error.value)


def test_timm_is_asked_for_where_it_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="grid.backbone: timm:resnet10t needs timm, .* not installed; install it"):
        load("timm:resnet10t")


def test_an_image_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"grid.backbone: timm:maxvit_pico_rw_256 .* 40x40 pixels .* to 256,") as error:
        backbones.build("timm:maxvit_pico_rw_256", 40)
    assert "\n" not in str(error.value)
