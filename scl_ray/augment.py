"""Random augmentation of a whole batch on the training device, with parameters of its own for every image.

An augmentation is a record of numbers. What it does to an image is what torchvision's transforms of the same name do:
RandomResizedCrop, or RandomCrop with padding, then RandomHorizontalFlip, ColorJitter, RandomGrayscale and GaussianBlur.
Everything random is drawn on the CPU, so which images a step concerns is known there and no device is waited for.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

ATTEMPTS = 10  # boxes that a resized crop tries before it falls back to the middle of the image
ASPECT = (3 / 4, 4 / 3)  # width over height of the boxes it tries
SIGMA = (0.1, 2.0)  # of a blur, in pixels

STEPS = 4  # of a colour jitter, in this order of columns
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(STEPS)


class Augmentation(NamedTuple):
    """What is random about an image, and by how much. The default changes nothing."""

    shift: float = 0.0  # whole-pixel translation up to this part of the side; what enters is black
    area: tuple[float, float] = (1.0, 1.0)  # part of the image that a resized crop keeps; not together with a shift
    flip: bool = False  # left to right, half of the images
    brightness: float = 0.0  # factors between 1 - x and 1 + x
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0  # turn by up to this part of the colour circle, either way
    jitter: float = 0.0  # probability of the four above
    grey: float = 0.0  # probability of losing the colour
    blur: float = 0.0  # probability of a Gaussian blur


_CONTRASTIVE = Augmentation(
    area=(0.2, 1.0), flip=True, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter=0.8, grey=0.2
)

AUGMENTATIONS = {
    "none": Augmentation(),
    "crop_flip": Augmentation(shift=1 / 8, flip=True),  # at 32 pixels: pad by 4, crop, flip (He et al. 2016)
    "crop": Augmentation(shift=1 / 8),  # for what its mirror image is not, such as digits
    "resized_crop_flip": Augmentation(area=(0.08, 1.0), flip=True),  # ImageNet's (Szegedy et al. 2015)
    "contrastive": _CONTRASTIVE,  # Chen et al. 2020 without blur, in Khosla et al.'s strength for CIFAR
    "contrastive_no_flip": _CONTRASTIVE._replace(area=(0.5, 1.0), flip=False),
    "contrastive_blur": _CONTRASTIVE._replace(area=(0.08, 1.0), blur=0.5),  # the same for ImageNet
}


class Draws(NamedTuple):
    """What is random about each of N images: a row each, on the CPU."""

    augmentation: Augmentation
    attempts: Tensor  # (N, 10, 2) float64: part of the area and aspect ratio of the boxes that a crop tries in turn
    position: Tensor  # (N, 2) float64 in [0, 1): where the box lies between the topmost and leftmost place and the last
    flip: Tensor  # (N,) bool
    colour: Tensor  # (N, 4): factors of brightness, contrast and saturation, turn of the hue; 1, 1, 1, 0 where none
    order: Tensor  # (N, 4): the four steps of the colour jitter in the order in which they happen
    grey: Tensor  # (N,) bool
    sigma: Tensor  # (N,): of the blur in pixels, 0 where none

    def of(self, rows: slice | Tensor) -> "Draws":
        """Those of some of the images."""
        return Draws(self.augmentation, *(drawn[rows] for drawn in self[1:]))


def draw(augmentation: Augmentation, count: int, generator: torch.Generator) -> Draws:
    """What is random about *count* images. *generator* lives on the CPU, so that every device sees the same."""

    def uniform(*columns: int) -> Tensor:
        return torch.rand(count, *columns, generator=generator, dtype=torch.float64)

    (least, most), (narrow, wide), (sharp, soft) = augmentation.area, map(math.log, ASPECT), SIGMA
    attempts = uniform(ATTEMPTS, 2)
    attempts = torch.stack(
        [least + (most - least) * attempts[..., 0], torch.exp(narrow + (wide - narrow) * attempts[..., 1])], dim=-1
    )
    strength = torch.tensor([augmentation.brightness, augmentation.contrast, augmentation.saturation, augmentation.hue])
    change = strength * (2 * uniform(STEPS) - 1) * (uniform(1) < augmentation.jitter)
    return Draws(
        augmentation,
        attempts,
        position=uniform(2),
        flip=(uniform() < 0.5) & augmentation.flip,
        colour=torch.tensor([1.0, 1.0, 1.0, 0.0]) + change,
        order=uniform(STEPS).argsort(dim=1),
        grey=uniform() < augmentation.grey,
        sigma=(sharp + (soft - sharp) * uniform()) * (uniform() < augmentation.blur),
    )


def boxes(draws: Draws, sizes: Tensor) -> Tensor:
    """The part of each image that its crop keeps: (N, 4) int64 of top, left, height, width, in pixels, on the CPU.

    *sizes* (N, 2) int64 are the images' heights and widths. A resized crop takes the first of its ten attempts that
    fits into the image, else the largest central box of an allowed aspect ratio (Szegedy et al. 2015, as torchvision's
    RandomResizedCrop). A shift's box is as large as the image and reaches over its border. Without either it is the
    image itself.
    """
    if draws.augmentation.area != (1.0, 1.0):
        return _resized_crop(draws, sizes)
    reach = (draws.augmentation.shift * sizes).round().long()
    return torch.cat([(draws.position * (2 * reach + 1)).long() - reach, sizes], dim=1)


def _resized_crop(draws: Draws, sizes: Tensor) -> Tensor:
    area, aspect = draws.attempts.unbind(dim=2)
    height, width = sizes.T
    target = area * (height * width)[:, None]
    tried = torch.stack([(target / aspect).sqrt(), (target * aspect).sqrt()], dim=2).round().long()
    # An attempt's side may not be nothing, either. The fall-back is one attempt more, which always fits.
    narrow, wide = ASPECT
    centred = torch.stack([height.minimum((width / narrow).round()), width.minimum((height * wide).round())], dim=1)
    tried = torch.cat([tried, centred.long()[:, None]], dim=1)
    fits = ((tried > 0) & (tried <= sizes[:, None])).all(dim=2)
    first = fits.int().argmax(dim=1)
    sides = tried[torch.arange(len(tried)), first]
    room = sizes - sides
    place = torch.where((first < ATTEMPTS)[:, None], (draws.position * (room + 1)).long(), room // 2)
    return torch.cat([place, sides], dim=1)


def apply(images: Tensor, draws: Draws, *, is_cropped: bool = False) -> Tensor:
    """Random versions of *images*, float32 (N, 3, H, W) in [0, 1], in the same form and size.

    Images that were cut to their `boxes` and resized when they were read come with *is_cropped*: they are flipped and
    recoloured only.
    """
    augmentation = draws.augmentation
    crops = augmentation.shift or augmentation.area != (1.0, 1.0)
    if crops and not is_cropped:
        images = _cropped(images, draws)
    elif augmentation.flip:
        flip = sent(draws.flip, images.device)
        images = torch.where(flip[:, None, None, None], images.flip(3), images)
    if augmentation.jitter or augmentation.grey:
        images = _recoloured(images, draws)
    if augmentation.blur:
        images = _blurred(images, draws.sigma)
    return images


def _cropped(images: Tensor, draws: Draws) -> Tensor:
    """Crop, resize bilinearly to the old size, flip: one matrix for the rows of each image and one for its columns."""
    count, _, *sides = images.shape
    cut = boxes(draws, torch.tensor(sides).expand(count, 2))
    table = sent(torch.cat([cut, draws.flip[:, None]], dim=1).float(), images.device)
    rows, columns = (
        _bilinear(first[:, None], length[:, None], side)
        for first, length, side in zip(table[:, 0:2].T, table[:, 2:4].T, sides, strict=True)
    )
    columns = torch.where(table[:, 4, None, None] > 0, columns.flip(1), columns)
    return _resampled(images, rows, columns)


def _bilinear(first: Tensor, length: Tensor, side: int) -> Tensor:
    """Weights (N, side, side) with which pixels of a line of *side* enter those of its resized part.

    The part begins at pixel *first* (N, 1) and has *length* (N, 1). Places before the centre of its first pixel, or
    behind that of its last, take that pixel, as where an image is cut before it is resized. Pixels outside the line
    are black.
    """
    pixels = torch.arange(side, device=first.device, dtype=first.dtype)
    place = first + ((pixels + 0.5) * (length / side) - 0.5).clamp(min=0).minimum(length - 1)
    return (1 - (place[:, :, None] - pixels).abs()).clamp_(min=0)


def _resampled(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Each image with its rows mixed by its matrix of *rows* (N, H, H), its columns by that of *columns* (N, W, W)."""
    across = torch.bmm(images.flatten(1, 2), columns.mT).view_as(images)
    return rows[:, None] @ across


def _recoloured(images: Tensor, draws: Draws) -> Tensor:
    """Colour jitter, its steps in each image's own order, each clamped to [0, 1]; then grey.

    The hue of all images is turned at once: they lie sorted by its place in their order, so those that other steps
    concern before it, or after it, lie together.
    """
    place = (draws.order == HUE).int().argmax(dim=1)
    by_place = place.argsort(descending=True)
    others = draws.order[draws.order != HUE].view(-1, STEPS - 1)
    steps = torch.stack([draws.colour.gather(1, others), others == CONTRAST, others == SATURATION], dim=2)[by_place]
    steps, turn, grey, there, back = (
        sent(drawn, images.device)
        for drawn in (
            steps.float(),
            draws.colour[by_place, HUE].float(),
            draws.grey[by_place],
            by_place,
            by_place.argsort(),
        )
    )
    images = images.index_select(0, there)
    before = [int((place > step).sum()) for step in range(STEPS - 1)]
    for step, count in enumerate(before):
        _blend(images[:count], *steps[:count, step].T)
    images = _turned(images, turn)
    for step, count in enumerate(before):
        _blend(images[count:], *steps[count:, step].T)
    images = torch.where(grey[:, None, None, None], _luminance(images), images)
    return images.index_select(0, back)


def _blend(images: Tensor, factor: Tensor, is_contrast: Tensor, is_saturation: Tensor) -> None:
    """Change the brightness, contrast or saturation of each of *images* by its *factor* (N,), in place.

    Each of the three blends an image with another: with black, with its mean grey, or with itself in grey.
    """
    factor, is_contrast, is_saturation = (each[:, None, None, None] for each in (factor, is_contrast, is_saturation))
    grey = _luminance(images)
    other = (grey * is_saturation).add_(grey.mean(dim=(2, 3), keepdim=True) * is_contrast)
    images.lerp_(other, 1 - factor).clamp_(0, 1)


def _luminance(images: Tensor) -> Tensor:
    """Grey images (N, 1, H, W) by ITU-R BT.601's weights."""
    red, green, blue = images.split(1, dim=1)
    return (0.2989 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def _turned(images: Tensor, turn: Tensor) -> Tensor:
    """Hue turned by *turn* (N,), in parts of the colour circle; value and saturation (of HSV) stay as they are."""
    red, green, blue = images.unbind(dim=1)
    value = torch.maximum(red, green).maximum(blue)
    chroma = value - torch.minimum(red, green).minimum(blue)
    # The hue is that of the largest channel, red 0, green 1/3, blue 2/3, moved towards the larger of the other two.
    towards = torch.where(value == red, green - blue, torch.where(value == green, blue - red, red - green))
    main = torch.where(value == red, 0.0, torch.where(value == green, 1 / 3, 2 / 3))
    hue = towards.div_(6 * chroma.clamp(min=torch.finfo(chroma.dtype).tiny)).add_(main).add_(turn[:, None, None])
    # A channel is largest up to a sixth of the circle from its own colour, smallest from a third on, linear between.
    away = hue[:, None] - (torch.arange(3, device=hue.device) / 3)[:, None, None]
    away = away.sub_(away.round()).abs_()
    return torch.addcmul(value[:, None], away.mul_(6).sub_(1).clamp_(0, 1), chroma[:, None], value=-1)


def _blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of those whose *sigma* is not 0, reflected at the border.

    The kernel is as wide as a tenth of the side, made odd (Chen et al. 2020): below 20 pixels nothing is blurred.
    """
    chosen = sigma.nonzero()[:, 0]
    rows, sigma = (sent(each, images.device) for each in (chosen, sigma[chosen].float()))
    vertical, horizontal = (_gaussian(sigma, side) for side in images.shape[2:])
    return images.index_copy(0, rows, _resampled(images.index_select(0, rows), vertical, horizontal))


def _gaussian(sigma: Tensor, side: int) -> Tensor:
    """Weights (N, side, side) with which pixels of a line of *side* enter those of the blurred one."""
    radius = side // 10 // 2
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    kernel = torch.softmax(-0.5 * (offsets / sigma[:, None]) ** 2, dim=1)
    reflected = functional.pad(torch.eye(side, device=sigma.device)[None], (radius, radius), mode="reflect")[0]
    return torch.einsum("jik,nk->nij", reflected.unfold(1, 2 * radius + 1, 1), kernel)


def sent(drawn: Tensor, device: torch.device) -> Tensor:
    """*drawn* on *device*. From pinned memory, since a copy from other memory may wait for what the device does."""
    return drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn
