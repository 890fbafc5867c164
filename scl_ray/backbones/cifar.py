"""The ResNets that were made for CIFAR, which torchvision does not have."""

from torch import Tensor, nn

from scl_ray.backbones.stem import stem


class CifarResNet(nn.Module):
    """The ResNet that He et al. (2016, section 4.2) made for CIFAR: images (N, 3, S, S) to features (N, 64).

    Depth 6n + 2: three stages of n basic blocks with 16, 32 and 64 channels. Where the shape changes, the shortcut is a
    1x1 convolution with batch-norm (their option B), as in torchvision's ResNets.
    """

    def __init__(self, depth: int, image_size: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1, self.maxpool = stem(16, image_size)
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
