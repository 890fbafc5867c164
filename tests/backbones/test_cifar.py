"""The ResNets of CIFAR."""

import pytest
import torch
import torchvision
from torch import nn

from scl_ray import backbones


@pytest.mark.parametrize("depth", [8, 20, 56])
def test_as_many_layers_as_the_name_says(depth):
    backbone = backbones.build(f"resnet{depth}", 32)
    convolutions = [m for m in backbone.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) == depth - 1  # the classifier is the last layer
    # He et al., table 6: 0.27 million weights at depth 20, 0.85 at 56, shortcuts and classifier being small change.
    published = {20: 0.27e6, 56: 0.85e6}
    if depth in published:
        assert sum(p.numel() for p in backbone.parameters()) == pytest.approx(published[depth], rel=0.03)


def test_features_are_the_mean_of_the_cam_layers_maps():
    backbone = backbones.build("resnet8", 32).eval()
    seen = []
    backbones.cam_layer(backbone).register_forward_hook(lambda module, inputs, output: seen.append(output))
    features = backbone(torch.rand(2, 3, 32, 32))
    assert features.shape == (2, 64)
    assert torch.allclose(features, seen[0].mean(dim=(2, 3)), atol=1e-6)  # float32, whichever order it adds up in


def test_the_basic_block_equals_torchvisions() -> None:
    torch.manual_seed(0)
    ours = backbones.build("resnet8", 32).layer2
    shortcut = nn.Sequential(nn.Conv2d(16, 32, 1, 2, bias=False), nn.BatchNorm2d(32))
    theirs = nn.Sequential(torchvision.models.resnet.BasicBlock(16, 32, 2, shortcut))
    theirs.load_state_dict(ours.state_dict())
    maps = torch.rand(4, 16, 32, 32)
    assert torch.equal(ours(maps), theirs(maps))
