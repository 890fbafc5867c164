"""Maps of tokens, and of channels that come last: the network stays what it is, and CAMs are the field's own."""

import numpy as np
import pytest
import torch
from pytorch_grad_cam import EigenCAM, GradCAM, HiResCAM, LayerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from threadpoolctl import threadpool_limits
from torch import nn
from torchvision.models import ConvNeXt, SwinTransformer, VisionTransformer
from torchvision.models.convnext import CNBlockConfig

from scl_ray import backbones
from scl_ray.attribution import explain
from scl_ray.backbones import torchvision_models

RESIZE = 1e-4  # grad-cam resizes with OpenCV
SIZE = 32


def torchvision_vit():
    network = VisionTransformer(SIZE, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32)
    return network, network.encoder.layers[-1].ln_1, lambda tokens: patches(tokens, prefix=1)


def torchvision_swin():
    network = SwinTransformer([4, 4], embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=[4, 4])
    return network, network.norm, lambda maps: maps.permute(0, 3, 1, 2)


def torchvision_convnext():
    blocks = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 2)]
    network = ConvNeXt(blocks, layer_scale=1.0)
    return network, network.features[-1][-1], None


def patches(tokens, prefix):
    side = round((tokens.shape[1] - prefix) ** 0.5)
    return tokens[:, prefix:].reshape(len(tokens), side, side, -1).permute(0, 3, 1, 2)


class Classifier(nn.Module):
    """A backbone and a last layer."""

    def __init__(self, backbone, last):
        super().__init__()
        self.backbone = backbone
        self.last = last

    @property
    def cam_layer(self):
        return backbones.cam_layer(self.backbone)

    def forward(self, images):
        return self.last(self.backbone(images))


@pytest.fixture(params=[torchvision_vit, torchvision_swin, torchvision_convnext])
def both(request):
    """A network, the same with its maps shown, and where grad-cam finds the maps of the first."""
    networks = []
    for _ in range(2):
        torch.manual_seed(1)
        networks.append(request.param())
    (shown, *_), (plain, layer, reshape) = networks
    backbone = torchvision_models.without_head(shown, SIZE).eval()
    last = nn.Linear(backbones.feature_size(backbone, SIZE), 4)
    name, head = [(name, module) for name, module in plain.named_modules() if isinstance(module, nn.Linear)][-1]
    assert head.out_features == 1000
    plain.set_submodule(name, last)
    return plain.eval(), layer, reshape, Classifier(backbone, last).eval()


@pytest.mark.parametrize(
    ("method", "peer"),
    [("grad_cam", GradCAM), ("hires_cam", HiResCAM), ("layer_cam", LayerCAM), ("eigen_cam", EigenCAM)],
)
@threadpool_limits.wrap(1, user_api="blas")
def test_cams_equal_grad_cam_librarys_with_a_reshape_transform(both, method, peer):
    plain, layer, reshape, ours = both
    images, targets = torch.randn(3, 3, SIZE, SIZE), torch.tensor([0, 1, 3])
    with torch.no_grad():
        assert torch.equal(ours(images), plain(images))
    wanted = [ClassifierOutputTarget(int(target)) for target in targets]
    theirs = peer(plain, [layer], reshape_transform=reshape)(images, wanted)
    maps = explain(ours, images, targets, method, protocol="published")
    assert maps.any()
    assert np.abs(maps.numpy() - theirs).max() < RESIZE
