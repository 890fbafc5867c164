"""Feature extractors by name, randomly initialised, with a stem that fits the image.

torchvision is imported where a network is built: it takes seconds, and whoever only reads a configuration needs none.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from scl_ray import plugins
from scl_ray.config import InputError


def resnet(depth: int, image_size: int) -> nn.Module:
    """torchvision's ResNet without its classifier: images (N, 3, S, S) to features (N, d).

    d is 512 (depth 18, 34) or 2048 (depth 50, 101, 152).
    """
    from torchvision import models

    network: nn.Module = getattr(models, f"resnet{depth}")(weights=None)
    network.conv1, network.maxpool = _stem(64, image_size)
    network.fc = nn.Identity()
    return network


class CifarResNet(nn.Module):
    """The ResNet that He et al. (2016, section 4.2) made for CIFAR: images (N, 3, S, S) to features (N, 64).

    Depth 6n + 2: three stages of n basic blocks with 16, 32 and 64 channels. Where the shape changes, the shortcut is a
    1x1 convolution with batch-norm (their option B), as in torchvision's ResNets.
    """

    def __init__(self, depth: int, image_size: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1, self.maxpool = _stem(16, image_size)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def cam_layer(self) -> nn.Module:
        """The block whose output feeds the global pooling."""
        return self.layer3[-1]

    def forward(self, images: Tensor) -> Tensor:
        maps = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return self.layer3(self.layer2(self.layer1(maps))).mean(dim=(2, 3))


def _stem(channels: int, image_size: int) -> tuple[nn.Conv2d, nn.Module]:
    if image_size < 64:
        # Pooling a small image to a quarter before the first block would leave little to look at.
        return nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.Identity()
    return nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False), nn.MaxPool2d(3, stride=2, padding=1)


def _stage(entering: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    shortcut = None
    if entering != channels:
        shortcut = nn.Sequential(nn.Conv2d(entering, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
    first = _BasicBlock(entering, channels, stride, shortcut)
    return nn.Sequential(first, *(_BasicBlock(channels, channels) for _ in range(blocks - 1)))


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016), equal to torchvision's, which takes seconds to import."""

    def __init__(self, entering: int, channels: int, stride: int = 1, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(entering, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = downsample

    def forward(self, maps: Tensor) -> Tensor:
        shortcut = maps if self.downsample is None else self.downsample(maps)
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(maps))))) + shortcut)


BACKBONES: dict[str, Callable[[int], nn.Module]] = {
    **{f"resnet{depth}": partial(CifarResNet, depth) for depth in (8, 20, 56)},
    **{f"resnet{depth}": partial(resnet, depth) for depth in (18, 34, 50, 101, 152)},
}


def cam_layer(backbone: nn.Module) -> nn.Module:
    """The module whose output feeds the global pooling, where class activation maps are taken.

    It is the backbone's ``cam_layer`` or, as in torchvision's ResNets, the last block of its ``layer4``. Raises
    InputError when there is neither.
    """
    layer = getattr(backbone, "cam_layer", None)
    if layer is None and isinstance(stage := getattr(backbone, "layer4", None), nn.Sequential):
        layer = stage[-1]
    if not isinstance(layer, nn.Module):
        kind = type(backbone).__name__
        raise InputError(f"backbone {kind}: has no cam_layer; set it to the module that feeds the global pooling")
    return layer


def build(name: str, image_size: int) -> nn.Module:
    """The backbone *name* for square images of *image_size* pixels: (N, 3, S, S) to features (N, d).

    *name* may be a ``module:callable``, called with the image size, that returns a torch module for which `cam_layer`
    and `feature_size` hold. Raises InputError when it does not.
    """
    if not plugins.is_plugin(name):
        return BACKBONES[name](image_size)
    backbone = plugins.load(name)(image_size)
    if not isinstance(backbone, nn.Module):
        raise InputError(f"backbone {name}: returned {type(backbone).__name__}; return a torch module")
    cam_layer(backbone)
    feature_size(backbone, image_size)
    return backbone


@torch.no_grad()
def feature_size(backbone: nn.Module, image_size: int) -> int:
    """Number d of features that *backbone* makes of an image. Raises InputError when its output is not (N, d)."""
    training = backbone.training
    device = next(backbone.parameters()).device
    features = backbone.eval()(torch.zeros(2, 3, image_size, image_size, device=device))
    backbone.train(training)
    if features.ndim != 2 or len(features) != 2:
        shape = tuple(features.shape)
        raise InputError(f"backbone {type(backbone).__name__}: turns 2 images into {shape}; return features (N, d)")
    return int(features.shape[1])
