"""Random augmentation of a whole batch on the training device, with parameters of its own for every image.

An augmentation is a record of numbers. Moving (crop, zoom, flip) is one resampling; colour is one affine map of RGB.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Augmentation(NamedTuple):
    """What is random about an image, and by how much. The default changes nothing."""

    shift: float = 0.0  # whole-pixel translation up to this part of the side; what enters is black
    area: tuple[float, float] = (1.0, 1.0)  # part of the image that a resized crop keeps, aspect ratio 3/4 to 4/3
    flip: bool = False  # left to right, half of the images
    brightness: float = 0.0  # factors between 1 - x and 1 + x
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0  # rotation up to this part of the colour circle, either way
    jitter: float = 0.0  # probability of the four above
    grey: float = 0.0  # probability of losing the colour


_CONTRASTIVE = Augmentation(
    area=(0.2, 1.0), flip=True, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter=0.8, grey=0.2
)

AUGMENTATIONS = {
    "none": Augmentation(),
    "crop_flip": Augmentation(shift=1 / 8, flip=True),  # at 32 pixels: pad by 4, crop, flip (He et al. 2016)
    "crop": Augmentation(shift=1 / 8),  # for what its mirror image is not, such as digits
    "contrastive": _CONTRASTIVE,  # Chen et al. 2020 without blur, in Khosla et al.'s strength for CIFAR
    "contrastive_no_flip": _CONTRASTIVE._replace(area=(0.5, 1.0), flip=False),
}

# RGB to luminance and the two axes of colour (NTSC's YIQ).
_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_FROM_YIQ = torch.linalg.inv(_TO_YIQ)


class Draws(NamedTuple):
    """What is random about each of N images: a row each, on the CPU, uniform in [0, 1)."""

    augmentation: Augmentation
    moving: Tensor  # (N, 7): area, aspect, position x, y, shift x, y, flip
    colour: Tensor  # (N, 6): brightness, contrast, saturation, hue, whether to jitter, whether to drop the colour

    def of(self, rows: slice) -> "Draws":
        """Those of some of the images."""
        return Draws(self.augmentation, self.moving[rows], self.colour[rows])


def draw(augmentation: Augmentation, count: int, generator: torch.Generator) -> Draws:
    """The random numbers of *count* images. *generator* lives on the CPU, so that every device sees the same."""
    return Draws(augmentation, torch.rand(count, 7, generator=generator), torch.rand(count, 6, generator=generator))


def apply(images: Tensor, draws: Draws) -> Tensor:
    """Random versions of *images*, float (N, 3, H, W) in [0, 1], in the same form."""
    augmentation = draws.augmentation
    if augmentation.shift or augmentation.area != (1.0, 1.0) or augmentation.flip:
        images = _moved(images, augmentation, draws.moving.to(images.device, non_blocking=True))
    if augmentation.jitter or augmentation.grey:
        images = _recoloured(images, augmentation, draws.colour.to(images.device, non_blocking=True))
    return images


def _moved(images: Tensor, augmentation: Augmentation, u: Tensor) -> Tensor:
    """Crop, zoom, translate and flip in one bilinear resampling.

    A crop that its aspect ratio would push over the border is cut there, where torchvision's RandomResizedCrop draws
    again.
    """
    count, _, height, width = images.shape
    low, high = augmentation.area
    area = low + (high - low) * u[:, 0]
    aspect = torch.exp((2 * u[:, 1] - 1) * math.log(4 / 3)) if low < 1 else torch.ones_like(area)
    scale = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], dim=1).clamp(max=1)
    # grid_sample's coordinates run from -1 to 1, so a crop of relative size s is free to move within ±(1 - s).
    offset = (2 * u[:, 2:4] - 1) * (1 - scale)
    sides = torch.tensor([width, height], device=images.device)
    reach = (augmentation.shift * sides).round()
    pixels = (u[:, 4:6] * (2 * reach + 1)).floor() - reach
    offset = offset + 2 * pixels / sides
    mirror = torch.where(u[:, 6] < 0.5, -1.0, 1.0) if augmentation.flip else torch.ones_like(area)
    zero = torch.zeros_like(area)
    theta = torch.stack(
        [scale[:, 0] * mirror, zero, offset[:, 0], zero, scale[:, 1], offset[:, 1]], dim=1
    ).view(count, 2, 3)  # fmt: skip
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def _recoloured(images: Tensor, augmentation: Augmentation, u: Tensor) -> Tensor:
    """Brightness, contrast, saturation, hue and grey, in this order, as one matrix and one offset per image.

    Torchvision's ColorJitter draws the order and clamps after each step; here the order is fixed and the clamp is last.
    Hue turns the chroma plane of YIQ.
    """
    count = len(images)
    strength = torch.tensor(augmentation[3:7], device=images.device)
    amount = (2 * u[:, :4] - 1) * strength * (u[:, 4:5] < augmentation.jitter)
    brightness, contrast, saturation = (1 + amount[:, :3]).T
    angle = 2 * math.pi * amount[:, 3]

    to_yiq, from_yiq = _TO_YIQ.to(images.device), _FROM_YIQ.to(images.device)
    turn = torch.eye(3, device=images.device).repeat(count, 1, 1)
    cosine, sine = angle.cos(), angle.sin()
    turn[:, 1, 1], turn[:, 1, 2], turn[:, 2, 1], turn[:, 2, 2] = cosine, -sine, sine, cosine
    # The chroma keeps its share; with none left the picture is grey.
    chroma = saturation * (u[:, 5] >= augmentation.grey)
    turn[:, 1:] *= chroma[:, None, None]
    colour = from_yiq @ turn @ to_yiq
    matrix = colour * (brightness * contrast)[:, None, None]

    mean_grey = (images.mean(dim=(2, 3)) @ to_yiq[0]) * brightness
    offset = (1 - contrast) * mean_grey  # contrast moves towards the mean grey, which no later step changes
    mixed = torch.bmm(matrix, images.flatten(2)).view_as(images)
    return (mixed + offset[:, None, None, None]).clamp(0, 1)
