"""What a ResNet does before its first block, fitted to the size of the images."""

from torch import nn

# Images smaller than this keep their resolution up to the first block.
SMALL = 64


def stem(channels: int, image_size: int) -> tuple[nn.Conv2d, nn.Module]:
    """The first convolution (3 to *channels*) and pooling for square images of *image_size* pixels."""
    if image_size < SMALL:
        # Pooling a small image to a quarter before the first block would leave little to look at.
        return nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.Identity()
    return nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False), nn.MaxPool2d(3, stride=2, padding=1)
