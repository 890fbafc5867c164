"""Backbones: shapes, stems, and the layer that class activation maps are taken from."""

import sys

import pytest
import torch
import torchvision
from torch import nn

from scl_ray import backbones
from scl_ray.backbones import BACKBONES
from scl_ray.config import InputError

FEATURES = {"resnet8": 64, "resnet20": 64, "resnet56": 64, "resnet18": 512, "resnet34": 512}
FEATURES |= {"resnet50": 2048, "resnet101": 2048, "resnet152": 2048}


@pytest.mark.parametrize("name", BACKBONES)
def test_features_and_cam_layer(name):
    with torch.device("meta"):
        backbone = backbones.build(name, 32)
        seen = []
        backbones.cam_layer(backbone).register_forward_hook(lambda module, inputs, output: seen.append(output))
        features = backbone(torch.empty(3, 3, 32, 32))
    assert features.shape == (3, FEATURES[name])
    assert seen[0].shape[:2] == features.shape  # the maps that the pooling averages


@pytest.mark.parametrize("name", ["resnet8", "resnet18"])
def test_features_are_the_mean_of_the_cam_layers_maps(name):
    backbone = backbones.build(name, 32).eval()
    seen = []
    backbones.cam_layer(backbone).register_forward_hook(lambda module, inputs, output: seen.append(output))
    features = backbone(torch.rand(2, 3, 32, 32))
    assert torch.allclose(features, seen[0].mean(dim=(2, 3)), atol=1e-6)


@pytest.mark.parametrize(("size", "map_size"), [(28, 4), (32, 4), (63, 8), (64, 2), (224, 7)])
def test_stem_fits_the_image(size, map_size):
    with torch.device("meta"):
        backbone = backbones.build("resnet18", size)
        seen = []
        backbones.cam_layer(backbone).register_forward_hook(lambda module, inputs, output: seen.append(output))
        backbone(torch.empty(1, 3, size, size))
    assert seen[0].shape[-1] == map_size


def test_large_images_get_torchvisions_own_network():
    ours, theirs = backbones.build("resnet18", 224), torchvision.models.resnet18(weights=None)
    state = {name: tensor for name, tensor in theirs.state_dict().items() if not name.startswith("fc.")}
    ours.load_state_dict(state)
    theirs.fc = nn.Identity()
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(ours.eval()(images), theirs.eval()(images))


@pytest.mark.parametrize("depth", [8, 20, 56])
def test_cifar_resnet_has_as_many_layers_as_its_name_says(depth):
    backbone = backbones.build(f"resnet{depth}", 32)
    convolutions = [m for m in backbone.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) == depth - 1  # the classifier is the last layer
    # He et al., table 6: 0.27 million weights at depth 20, 0.85 at 56, shortcuts and classifier being small change.
    published = {20: 0.27e6, 56: 0.85e6}
    if depth in published:
        assert sum(p.numel() for p in backbone.parameters()) == pytest.approx(published[depth], rel=0.03)


OWN = """
import torch

class Net(torch.nn.Module):
    def __init__(self, size, cam=True, flat=True):
        super().__init__()
        self.block = torch.nn.Conv2d(3, 7, 3)
        self.flat = flat
        if cam:
            self.cam = "block"
    @property
    def cam_layer(self):
        return getattr(self, getattr(self, "cam", "nothing"), None)
    def forward(self, images):
        maps = self.block(images)
        return maps.mean(dim=(2, 3)) if self.flat else maps

def good(image_size): return Net(image_size)
def no_cam_layer(image_size): return Net(image_size, cam=False)
def like_torchvision(image_size):
    net = Net(image_size, cam=False)
    net.layer4 = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Tanh())
    return net
def maps(image_size): return Net(image_size, flat=False)
def no_module(image_size): return 7
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_backbone.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_backbone"
    sys.modules.pop("own_backbone", None)


def test_a_users_own(own_module):
    backbone = backbones.build(f"{own_module}:good", 20)
    assert backbones.feature_size(backbone, 20) == 7
    assert backbone.training
    assert backbones.cam_layer(backbone) is backbone.block
    assert isinstance(backbones.cam_layer(backbones.build(f"{own_module}:like_torchvision", 20)), nn.Tanh)


@pytest.mark.parametrize("name", ["no_cam_layer", "maps", "no_module"])
def test_a_users_own_that_does_not_fit_is_refused(own_module, name):
    with pytest.raises(InputError) as error:
        backbones.build(f"{own_module}:{name}", 20)
    assert "\n" not in str(error.value)


def test_the_basic_block_equals_torchvisions() -> None:
    torch.manual_seed(0)
    ours = backbones.build("resnet8", 32).layer2
    shortcut = nn.Sequential(nn.Conv2d(16, 32, 1, 2, bias=False), nn.BatchNorm2d(32))
    theirs = nn.Sequential(torchvision.models.resnet.BasicBlock(16, 32, 2, shortcut))
    theirs.load_state_dict(ours.state_dict())
    maps = torch.rand(4, 16, 32, 32)
    assert torch.equal(ours(maps), theirs(maps))
