"""A dataset by name: uint8 images and labels, split once and for all by its content alone.

Images stay uint8; what normalises them comes from the training split. In memory they are numpy's arrays, so that Ray's
object store can share one copy among all processes of a node; too many for that stay in their files, whose paths alone
travel.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from scl_ray import plugins
from scl_ray.config import DatasetConfig, InputError
from scl_ray.datasets import formats, image_folder, imagenet_s, user
from scl_ray.datasets.files import ImageFiles, remembered
from scl_ray.datasets.formats import Source, Statistics
from scl_ray.datasets.splits import stratified_order

Images = NDArray[np.uint8]


class Info(NamedTuple):
    """What is known of a dataset without having it: enough to count a sweep's work."""

    classes: int
    image_size: int
    train_images: int  # before the validation images are taken from them
    test_images: int
    channels: int = 3
    has_masks: bool = False


INFO = {
    "digits": Info(classes=10, image_size=32, train_images=1437, test_images=formats.DIGITS_TEST_IMAGES),
    "mnist": Info(classes=10, image_size=28, train_images=60_000, test_images=10_000),
    "fashion_mnist": Info(classes=10, image_size=28, train_images=60_000, test_images=10_000),
    "cifar10": Info(classes=10, image_size=32, train_images=50_000, test_images=10_000),
    "cifar100": Info(classes=100, image_size=32, train_images=50_000, test_images=10_000),
    "imagenet_s50": Info(
        classes=50, image_size=imagenet_s.IMAGE_SIZE, train_images=64_431, test_images=752, has_masks=True
    ),
}

DATASETS: dict[str, Callable[[DatasetConfig], Source]] = {
    "digits": formats.digits,
    "mnist": formats.mnist,
    "fashion_mnist": formats.fashion_mnist,
    "cifar10": formats.cifar10,
    "cifar100": formats.cifar100,
    "image_folder": image_folder.read,
    "imagenet_s50": imagenet_s.read,
}
_FINGERPRINTS = {"image_folder": image_folder.fingerprint, "imagenet_s50": imagenet_s.fingerprint}

_CHUNK = 1024  # images that are resized, or whose pixels are counted, together


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images as uint8 (N, 3, H, W) with H = W, labels as int64 (N,), in three splits.

    Images in files are decoded when they are indexed, into the array that an array's index would give. ``mean`` and
    ``std`` are per channel, of the training split's pixels in [0, 1], or those that the field has agreed on.
    ``test_masks`` (N, H, W) is true on the object. ``evaluation_order`` is a permutation of the test indices that
    depends on the dataset alone; every prefix of it is stratified to within one image a class.
    """

    name: str
    classes: tuple[str, ...]
    fingerprint: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train_images: Images | ImageFiles
    train_labels: NDArray[np.int64]
    validation_images: Images | ImageFiles
    validation_labels: NDArray[np.int64]
    test_images: Images | ImageFiles
    test_labels: NDArray[np.int64]
    evaluation_order: NDArray[np.int64]
    test_masks: NDArray[np.bool_] | None = None

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return int(self.test_images.shape[-1])

    @property
    def files_root(self) -> Path | None:
        """The folder that every machine has to see, since images are read from it while they are used; or None."""
        images = self.test_images if isinstance(self.test_images, ImageFiles) else self.train_images
        return images.root if isinstance(images, ImageFiles) else None


def load(config: DatasetConfig, *, to_train: bool = True) -> Dataset:
    """The dataset that *config* names, resized to ``config.image_size`` (default: the dataset's own size).

    Unless it is *to_train*, training and validation images may be none. Images that stay in their files are all decoded
    once, and when they change. Raises InputError when something is missing, empty, broken or inconsistent.
    """
    source = _read(config)
    _check(config, source, to_train)
    size = config.image_size or (INFO[config.name].image_size if config.name in INFO else source.test_images.shape[-1])
    train, test = _resized(source.train_images, size), _resized(source.test_images, size)
    order = stratified_order(source.train_labels)
    held_out = round(config.validation * len(order))
    if (to_train and held_out == 0) or len(test) == 0:
        raise InputError(
            f"dataset {config.name}: {len(order)} training and {len(test)} test images are too few for "
            f"dataset.validation {config.validation}; give more images"
        )
    validation, kept = np.sort(order[:held_out]), np.sort(order[held_out:])
    if to_train and (lost := np.setdiff1d(source.train_labels, source.train_labels[kept])).size:
        raise InputError(
            f"dataset {config.name}: all training images of the class {source.classes[lost[0]]!r} would be validation "
            f"images; give more of them, or lower dataset.validation {config.validation}"
        )
    content = source.fingerprint or _content_hash(source)
    for split, used in (("train", train if to_train else None), ("test", test)):
        if isinstance(used, ImageFiles):
            # Found out after hours of training, a broken file would cost them.
            remembered("readable", f"{content} {split}", partial(_decoded, used))
    train, validation_images = _of(train, kept), _of(train, validation)
    mean, std = source.statistics or _statistics(train, f"{content} {size} {config.validation}")
    return Dataset(
        name=config.name,
        classes=source.classes,
        fingerprint=content,
        mean=mean,
        std=std,
        train_images=train,
        train_labels=source.train_labels[kept],
        validation_images=validation_images,
        validation_labels=source.train_labels[validation],
        test_images=test,
        test_labels=source.test_labels,
        evaluation_order=stratified_order(source.test_labels),
        test_masks=None if source.test_masks is None else _resized_masks(source.test_masks, size),
    )


def fingerprint(config: DatasetConfig) -> str:
    """SHA-256 (hex) of the dataset's content as it is stored: not of its path, nor of the size asked for.

    Of images in files none is decoded.
    """
    if config.name in _FINGERPRINTS:
        return _FINGERPRINTS[config.name](config)
    return _content_hash(_read(config))


def _read(config: DatasetConfig) -> Source:
    return user.read(config) if plugins.is_plugin(config.name) else DATASETS[config.name](config)


def _check(config: DatasetConfig, source: Source, to_train: bool) -> None:
    """Raise InputError unless there is something to train on, or at least to evaluate, with labels that fit it."""
    name = f"dataset {config.name}"
    if to_train and len(source.train_labels) == 0:
        raise InputError(f"{name}: {config.root} holds test images alone; add train/, with a folder per class, or set "
                         "dataset.root to a folder that has it")  # fmt: skip
    if to_train and len(source.classes) == 1:
        raise InputError(f"{name}: has the class {source.classes[0]!r} alone, so there is nothing to tell apart; add "
                         "images of another class")  # fmt: skip
    for images, labels in ((source.train_images, source.train_labels), (source.test_images, source.test_labels)):
        if len(images) != len(labels):
            raise InputError(f"{name}: has {len(images)} images for {len(labels)} labels; fetch it again")
        if wrong := set(labels.tolist()) - set(range(len(source.classes))):
            raise InputError(f"{name}: has the label {min(wrong)}, which is none of its {len(source.classes)} classes; "
                             "fetch it again, or set dataset.root to where it is")  # fmt: skip


def _decoded(images: ImageFiles) -> str:
    images.check()
    return "yes"


def _of(images: Images | ImageFiles, indices: NDArray[np.int64]) -> Images | ImageFiles:
    return images.of(indices) if isinstance(images, ImageFiles) else images[indices]


def _content_hash(source: Source) -> str:
    """Of a dataset in memory."""
    digest = hashlib.sha256("\0".join(source.classes).encode())
    for array in (source.train_images, source.train_labels, source.test_images, source.test_labels, source.test_masks):
        if array is not None:
            assert isinstance(array, np.ndarray)
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _resized(images: Images | ImageFiles, size: int) -> Images | ImageFiles:
    """(N, C, h, w) to (N, 3, size, size): bilinear with antialiasing; grey images repeat their channel."""
    if isinstance(images, ImageFiles):
        return images  # which are of the size asked for
    if images.shape[-2:] != (size, size):
        resized = np.empty((*images.shape[:2], size, size), np.uint8)
        for first in range(0, len(images), _CHUNK):
            span = slice(first, first + _CHUNK)
            chunk = torch.tensor(images[span])
            resized[span] = functional.interpolate(chunk, (size, size), mode="bilinear", antialias=True)
        images = resized
    return np.repeat(images, 3, axis=1) if images.shape[1] == 1 else np.ascontiguousarray(images)


def _resized_masks(masks: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    if masks.shape[-2:] == (size, size):
        return masks
    grey = torch.tensor(masks)[:, None].to(torch.uint8)
    return functional.interpolate(grey, (size, size), mode="nearest-exact")[:, 0].numpy().astype(np.bool_)


def _statistics(images: Images | ImageFiles, key: str) -> Statistics:
    """Mean and standard deviation; those of images in files, all of which are decoded for it, are remembered."""
    if not isinstance(images, ImageFiles):
        return _mean_and_std(images)
    mean, std = json.loads(remembered("statistics", key, lambda: json.dumps(_mean_and_std(images))))
    return tuple(mean), tuple(std)


def _mean_and_std(images: Images | ImageFiles) -> Statistics:
    """Per channel, of pixels in [0, 1]; exact, from the histogram of the 256 levels; 0 and 1 without any."""
    channels = images.shape[1]
    if len(images) == 0:
        return (0.0,) * channels, (1.0,) * channels
    counts = np.zeros((channels, 256), np.int64)
    for first in range(0, len(images), _CHUNK):
        chunk = images[first : first + _CHUNK]
        for channel in range(channels):
            counts[channel] += np.bincount(chunk[:, channel].ravel(), minlength=256)
    shares, levels = counts / counts.sum(axis=1, keepdims=True), np.arange(256) / 255
    means = shares @ levels
    stds = np.sqrt((shares * (levels - means[:, None]) ** 2).sum(axis=1))
    # A channel of one level has nothing to scale; dividing by one leaves it at zero.
    return tuple(means.tolist()), tuple(np.where(stds == 0, 1.0, stds).tolist())
