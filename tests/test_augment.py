"""Augmentation: what each random image may be, against the definition or torchvision."""

import math

import pytest
import torch
from torch.nn import functional
from torchvision.transforms.v2 import functional as tv

from scl_ray import datasets
from scl_ray.augment import AUGMENTATIONS, Augmentation, augment
from scl_ray.config import DatasetConfig


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    return torch.tensor(datasets.load(DatasetConfig(name="digits")).train_images[:64]) / 255


@pytest.fixture(scope="module")
def colours() -> torch.Tensor:
    """Images in the middle of the range, where no step of a colour change clamps."""
    return 0.35 + 0.25 * torch.rand(200, 3, 16, 16, generator=generator(1))


def test_none_changes_nothing(digits):
    assert torch.equal(augment(digits, AUGMENTATIONS["none"], generator()), digits)


@pytest.mark.parametrize(("name", "mirrors"), [("crop", [False]), ("crop_flip", [False, True])])
def test_crop_is_a_shift_of_whole_pixels_into_black(digits, name, mirrors):
    result = augment(digits, AUGMENTATIONS[name], generator())
    padded = functional.pad(digits, (4, 4, 4, 4))
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
    assert distance.max() < 1e-5
    assert len(chosen.unique()) > 20  # every image has a draw of its own
    if len(mirrors) == 2:
        assert 0.3 < (chosen >= 81).float().mean() < 0.7


def test_crop_reaches_an_eighth_of_a_larger_image():
    image = torch.zeros(256, 3, 64, 64)
    image[:, :, 32, 32] = 1
    result = augment(image, AUGMENTATIONS["crop"], generator())[:, 0]
    place = result.flatten(1).argmax(dim=1)
    rows, columns = place // 64 - 32, place % 64 - 32
    assert sorted(rows.unique().tolist()) == list(range(-8, 9))
    assert sorted(columns.unique().tolist()) == list(range(-8, 9))


def test_resized_crop_keeps_the_area_and_aspect_asked_for():
    size = 64
    ramp = (torch.arange(size) + 0.5) / size
    image = torch.stack([ramp.expand(size, size), ramp[:, None].expand(size, size), torch.ones(size, size)])
    result = augment(image.repeat(500, 1, 1, 1), Augmentation(area=(0.2, 1.0), flip=True), generator())
    # The ramps of x and y tell where the crop lies: its width is the slope between two inner pixels.
    row, column = result[:, 0, size // 2], result[:, 1, :, size // 2]
    width = (row[:, 40] - row[:, 24]) * size / 16
    height = (column[:, 40] - column[:, 24]) * size / 16
    assert 0.4 < (width < 0).float().mean() < 0.6
    area, aspect = width.abs() * height, width.abs() / height
    assert 0.2 * 0.75 - 1e-3 < area.min() < 0.25
    assert 0.95 < area.max() <= 1 + 1e-3
    inside = (width.abs() < 0.999) & (height < 0.999)  # not cut at the border
    assert 0.75 - 1e-3 < aspect[inside].min() < 0.8
    assert 1.25 < aspect[inside].max() < 4 / 3 + 1e-3
    assert torch.allclose(result[:, 2, 1:-1, 1:-1], torch.ones(())), "a crop never leaves the image"


@pytest.mark.parametrize(
    ("field", "column", "theirs"),
    [
        ("brightness", 0, tv.adjust_brightness),
        ("contrast", 1, tv.adjust_contrast),
        ("saturation", 2, tv.adjust_saturation),
    ],
)
def test_jitter_is_torchvisions(colours, field, column, theirs):
    result = augment(colours, Augmentation(jitter=1, **{field: 0.4}), generator())
    factors = 1 + 0.4 * (2 * torch.rand(len(colours), 6, generator=generator())[:, column] - 1)
    expected = torch.stack([theirs(image, float(f)) for image, f in zip(colours, factors, strict=True)])
    # torchvision's luminance weights have four digits, its 0.2989 for 0.299.
    assert (result - expected).abs().max() < 1e-3


def test_hue_keeps_luminance_and_turns_a_full_circle(colours):
    luminance = torch.tensor([0.299, 0.587, 0.114])
    result = augment(colours, Augmentation(jitter=1, hue=0.1), generator())
    assert torch.allclose(
        torch.einsum("nchw,c->nhw", result, luminance), torch.einsum("nchw,c->nhw", colours, luminance), atol=1e-5
    )
    angle = 0.1 * (2 * torch.rand(len(colours), 6, generator=generator())[:, 3] - 1).abs() * 2 * math.pi
    # A turn by a moves a point at distance r from the grey axis by 2 r sin(a / 2) in the chroma plane.
    to_chroma = torch.tensor([[0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    before, after = (torch.einsum("kc,nchw->nkhw", to_chroma, x) for x in (colours, result))
    moved = (after - before).norm(dim=1) / before.norm(dim=1)
    assert torch.allclose(moved, (2 * (angle / 2).sin())[:, None, None].expand_as(moved), atol=1e-3)


def test_grey_and_jitter_happen_as_often_as_they_should():
    images = torch.rand(2000, 3, 2, 2, generator=generator(2)).mul(0.3).add(0.3)
    grey = augment(images, Augmentation(grey=0.2), generator())
    share = (grey.amax(dim=1) - grey.amin(dim=1)).amax(dim=(1, 2)).lt(1e-5).float().mean()
    assert 0.17 < share < 0.23
    only_jitter = AUGMENTATIONS["contrastive"]._replace(area=(1.0, 1.0), flip=False, grey=0.0)
    jittered = augment(images, only_jitter, generator())
    assert 0.77 < (jittered - images).abs().amax(dim=(1, 2, 3)).gt(1e-4).float().mean() < 0.83


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_generator_decides_all_and_pixels_stay_in_range(digits, name):
    first = augment(digits, AUGMENTATIONS[name], generator(3))
    torch.rand(1)
    assert torch.equal(first, augment(digits, AUGMENTATIONS[name], generator(3)))
    assert first.shape == digits.shape
    assert first.dtype == torch.float32
    assert first.min() >= 0
    assert first.max() <= 1 + 1e-6
    if name != "none":
        assert not torch.equal(first, augment(digits, AUGMENTATIONS[name], generator(4)))
    # A grey picture stays grey: no colour is invented.
    assert (first.amax(dim=1) - first.amin(dim=1)).max() < 1e-4


def test_an_image_is_augmented_alone(digits):
    """The result for an image does not depend on the others in the batch."""
    other = digits.clone()
    other[1:] = 0
    for name in AUGMENTATIONS:
        first, second = (augment(x, AUGMENTATIONS[name], generator())[0] for x in (digits, other))
        assert torch.allclose(first, second, atol=1e-6)
