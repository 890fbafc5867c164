"""Augmentation: each random image is what torchvision's transforms make of it with the parameters that were drawn."""

import math

import pytest
import torch
from scipy.stats import chisquare, ks_2samp
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from scl_ray.augment import AUGMENTATIONS, Augmentation, Draws, apply, boxes, draw

# Float32 rounds at 6e-8, and hue and contrast multiply that by no more than a few hundred.
TOLERANCE = 1e-4


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, height: int, width: int) -> Tensor:
    """Colour noise over a gradient, with pixels that are black, white, grey or of one pure colour among it."""
    noise = torch.rand(count, 3, height, width, generator=generator(1))
    images = noise * torch.linspace(0.2, 1, width)
    images[:, :, ::5] = images[:, :, ::5].round()
    images[:, :, 1::7] = images[:, :1, 1::7]
    return images


def boxes_of(images: Tensor, draws: Draws) -> Tensor:
    return boxes(draws, torch.tensor(images.shape[2:]).expand(len(images), 2))


def cropped(images: Tensor, draws: Draws) -> Tensor:
    """Torchvision's crops of *images*, resized to their size."""
    sides = list(images.shape[2:])
    return torch.stack(
        [tv.resized_crop(image, *box, sides) if draws.augmentation.shift == 0 else tv.crop(image, *box)
         for image, box in zip(images, boxes_of(images, draws).tolist(), strict=True)]
    )  # fmt: skip


def by_torchvision(images: Tensor, draws: Draws) -> Tensor:
    results = []
    for image, one in zip(cropped(images, draws), range(len(images)), strict=True):
        if draws.flip[one]:
            image = tv.horizontal_flip(image)
        steps = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
        for step in draws.order[one].tolist():
            image = steps[step](image, float(draws.colour[one, step]))
        if draws.grey[one]:
            image = tv.rgb_to_grayscale(image, num_output_channels=3)
        if draws.sigma[one] > 0:
            # SimCLR's width of the kernel, as its authors compute it, of columns and of rows.
            kernel = [int(side // 10 / 2) * 2 + 1 for side in reversed(images.shape[2:])]
            image = tv.gaussian_blur(image, kernel, [float(draws.sigma[one])])
        results.append(image)
    return torch.stack(results)


@pytest.mark.parametrize(("count", "height", "width"), [(96, 32, 32), (48, 40, 64), (6, 224, 224)])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_image_is_torchvisions_with_the_same_parameters(name, count, height, width):
    images = pictures(count, height, width)
    draws = draw(AUGMENTATIONS[name], count, generator())
    before = images.clone()
    result = apply(images, draws)
    assert (result - by_torchvision(images, draws)).abs().max() < TOLERANCE
    assert torch.equal(images, before), "the images given are not written to"


def test_none_changes_nothing():
    images = pictures(4, 16, 16)
    assert torch.equal(apply(images, draw(AUGMENTATIONS["none"], 4, generator())), images)


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if "crop" not in name or "resized" in name])
def test_an_image_cut_when_it_was_read_is_only_flipped_and_recoloured(name):
    images = pictures(32, 32, 48)
    draws = draw(AUGMENTATIONS[name], len(images), generator())
    # What decoding yields: channels lie together in memory.
    read = cropped(images, draws).contiguous(memory_format=torch.channels_last)
    result = apply(read, draws, is_cropped=True)
    assert (result - apply(images, draws)).abs().max() < TOLERANCE


@pytest.mark.parametrize(("name", "mirrors"), [("crop", [False]), ("crop_flip", [False, True])])
def test_crop_is_a_shift_of_whole_pixels_into_black(name, mirrors):
    images = pictures(64, 32, 32)
    result = apply(images, draw(AUGMENTATIONS[name], len(images), generator()))
    padded = functional.pad(images, (4, 4, 4, 4))
    candidates = torch.stack(
        [
            crop.flip(3) if mirror else crop
            for mirror in mirrors
            for y in range(9)
            for x in range(9)
            for crop in [padded[:, :, y : y + 32, x : x + 32]]
        ]
    )
    distance, chosen = (candidates - result).abs().amax(dim=(2, 3, 4)).min(dim=0)
    assert distance.max() < 1e-6
    assert len(chosen.unique()) > 20  # every image has a draw of its own
    if len(mirrors) == 2:
        assert 0.3 < (chosen >= 81).float().mean() < 0.7


def test_crop_reaches_an_eighth_of_a_larger_image():
    draws = draw(AUGMENTATIONS["crop"], 1000, generator())
    found = boxes(draws, torch.tensor([[64, 48]]).expand(1000, 2))
    assert found[:, 0].unique().tolist() == list(range(-8, 9))
    assert found[:, 1].unique().tolist() == list(range(-6, 7))
    assert (found[:, 2:] == torch.tensor([64, 48])).all()


@pytest.mark.parametrize("size", [(32, 32), (375, 500), (60, 90), (90, 60)])
def test_a_resized_crop_is_the_first_attempt_that_fits(size):
    height, width = size
    draws = draw(AUGMENTATIONS["resized_crop_flip"], 300, generator())
    found = boxes(draws, torch.tensor([size]).expand(300, 2)).tolist()
    for (top, left, h, w), attempts, (down, right) in zip(
        found, draws.attempts.tolist(), draws.position.tolist(), strict=True
    ):
        sides = [(round(math.sqrt(height * width * area / aspect)), round(math.sqrt(height * width * area * aspect)))
                 for area, aspect in attempts]  # fmt: skip
        assert (h, w) == next(side for side in sides if 0 < side[0] <= height and 0 < side[1] <= width)
        assert (top, left) == (math.floor(down * (height - h + 1)), math.floor(right * (width - w + 1)))


@pytest.mark.parametrize("size", [(10, 300), (300, 10)])
def test_where_no_attempt_fits_the_crop_is_torchvisions_in_the_middle(size):
    scale = (0.9, 1.0)  # of 30 : 1, which no box of an aspect ratio below 4 : 3 can cover
    draws = draw(Augmentation(area=scale), 5, generator())
    theirs = v2.RandomResizedCrop(32, scale=scale).make_params([torch.zeros(3, *size)])
    expected = [theirs[key] for key in ("top", "left", "height", "width")]
    assert boxes(draws, torch.tensor([size]).expand(5, 2)).tolist() == [expected] * 5


@pytest.mark.parametrize(("name", "size"), [("contrastive", (32, 32)), ("resized_crop_flip", (40, 120))])
def test_boxes_are_distributed_as_torchvisions(name, size):
    count = 3000
    draws = draw(AUGMENTATIONS[name], count, generator())
    ours = boxes(draws, torch.tensor([size]).expand(count, 2))
    transform = v2.RandomResizedCrop(32, scale=AUGMENTATIONS[name].area)
    image = [torch.zeros(3, *size)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [transform.make_params(image) for _ in range(count)]
    for column, key in enumerate(("top", "left", "height", "width")):
        # A thousandth: four columns of two cases would fail by chance once in 125 seeds, and the seed is fixed.
        assert ks_2samp(ours[:, column].numpy(), [each[key] for each in drawn]).pvalue > 1e-3, key


def test_what_is_drawn_is_as_frequent_as_it_should_be():
    draws = draw(AUGMENTATIONS["contrastive_blur"], 6000, generator())
    is_jittered = (draws.colour != torch.tensor([1.0, 1, 1, 0])).any(dim=1)
    blurred = draws.sigma[draws.sigma > 0]
    for name, happens, probability in (
        ("flip", draws.flip, 0.5), ("jitter", is_jittered, 0.8), ("grey", draws.grey, 0.2),
        ("blur", draws.sigma > 0, 0.5),
    ):  # fmt: skip
        # Four standard deviations of a mean of 6000 draws.
        allowed = 4 * math.sqrt(probability * (1 - probability) / 6000)
        assert abs(happens.double().mean() - probability) < allowed, name
    _, counts = draws.order.unique(dim=0, return_counts=True)
    assert len(counts) == 24
    assert chisquare(counts.numpy()).pvalue > 1e-3
    factors = draws.colour[is_jittered]
    for drawn, low, high in (
        *((column, 0.6, 1.4) for column in factors[:, :3].T), (factors[:, 3], -0.1, 0.1), (blurred, 0.1, 2.0)
    ):  # fmt: skip
        uniform = torch.linspace(low, high, 5000)
        assert low <= drawn.min() < drawn.max() <= high
        assert ks_2samp(drawn.numpy(), uniform.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_generator_decides_all_and_pixels_stay_in_range(name):
    images = pictures(16, 32, 32)
    first = apply(images, draw(AUGMENTATIONS[name], 16, generator(3)))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        assert torch.equal(first, apply(images, draw(AUGMENTATIONS[name], 16, generator(3))))
    assert first.shape == images.shape
    assert first.dtype == torch.float32
    assert first.min() >= 0
    assert first.max() <= 1 + 1e-6  # weights of a resampling add up to 1 but for rounding
    if name != "none":
        assert not torch.equal(first, apply(images, draw(AUGMENTATIONS[name], 16, generator(4))))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_image_is_augmented_alone(name):
    """So workers that share a batch, each with the draws of its rows, see what one worker would."""
    images = pictures(16, 32, 32)
    draws = draw(AUGMENTATIONS[name], 16, generator())
    together = apply(images, draws)
    for rows in (slice(0, 1), slice(3, 11), torch.tensor([2, 15, 4])):
        assert torch.allclose(apply(images[rows], draws.of(rows)), together[rows], atol=1e-6)


def test_below_twenty_pixels_a_tenth_of_the_side_is_no_blur():
    images = pictures(16, 19, 19)
    draws = draw(Augmentation(blur=1.0), 16, generator())
    assert torch.allclose(apply(images, draws), images, atol=1e-6)
    assert not torch.allclose(apply(pictures(16, 20, 20), draws), pictures(16, 20, 20), atol=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_gpu_is_never_waited_for_and_makes_the_same_images(name):
    images = pictures(64, 32, 32)
    draws = draw(AUGMENTATIONS[name], 64, generator())
    there = images.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = apply(there, draws)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (result.cpu() - apply(images, draws)).abs().max() < TOLERANCE
