"""Backbones by name, and of the user's own: shapes, and the layer that class activation maps are taken from."""

import ast
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from scl_ray import backbones
from scl_ray.attribution import explain
from scl_ray.checkpoint import ExplainedNetwork
from scl_ray.config import InputError
from scl_ray.readout import ReadOut


def test_the_libraries_of_networks_wait_until_a_network_is_built():
    for path in Path(backbones.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            assert not (isinstance(node, ast.Import) and {"timm", "torchvision"} & {alias.name for alias in node.names})
            assert not (isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in ("timm", "torchvision"))


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
def tokens(image_size): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * image_size**2, 5))
def like_torchvision(image_size):
    net = Net(image_size, cam=False)
    net.layer4 = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Tanh())
    return net
def maps(image_size): return Net(image_size, flat=False)
def two(image_size): return Two(3, 5, 3)
def no_module(image_size): return 7
def no_weights(image_size): return torch.nn.Flatten()

class Two(torch.nn.Conv2d):
    def forward(self, images):
        return images.mean(dim=(2, 3)), images
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


@pytest.mark.parametrize("name", ["maps", "two", "no_module", "no_weights"])
def test_a_users_own_that_does_not_fit_is_refused(own_module, name):
    with pytest.raises(InputError) as error:
        backbones.build(f"{own_module}:{name}", 20)
    assert "\n" not in str(error.value)


def explained(backbone, size):
    weight = torch.randn(2, backbones.feature_size(backbone, size), generator=torch.Generator().manual_seed(0))
    return ExplainedNetwork(backbone, ReadOut(weight, torch.zeros(2), normalise=False), weight).eval()


def test_a_cam_layer_that_is_not_named_is_found(own_module):
    named, found = (backbones.build(f"{own_module}:{name}", 20) for name in ("good", "no_cam_layer"))
    found.load_state_dict(named.state_dict())
    assert backbones.cam_layer(found) is None
    images, targets = torch.randn(2, 3, 20, 20), torch.tensor([0, 1])
    maps = [explain(explained(backbone, 20), images, targets, "grad_cam") for backbone in (named, found)]
    assert torch.equal(*maps)
    assert maps[0].any()


def test_a_network_without_maps_is_explained_by_gradients_alone(own_module):
    network = explained(backbones.build(f"{own_module}:tokens", 20), 20)
    images, targets = torch.randn(2, 3, 20, 20), torch.tensor([0, 1])
    assert explain(network, images, targets, "saliency").any()
    with pytest.raises(ValueError, match="a CAM needs feature maps that the network pools"):
        explain(network, images, targets, "grad_cam")
