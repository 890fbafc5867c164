"""A dataset as a given network sees it: its channels, its outputs for classes, and images to compare with."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from scl_ray import datasets
from scl_ray.config import DatasetConfig, InputError
from scl_ray.datasets import Dataset, Images
from scl_ray.datasets.files import ImageFiles
from scl_ray.evaluation import REFERENCE


def load(config: DatasetConfig, channels: int, explained: int | None) -> Dataset:
    """The dataset that *config* names with *channels* 1 or 3, of which the first *explained* test images are evaluated.

    Where it has test images alone, those to compare with are taken from the end of their order, where none is
    evaluated. Raises InputError for coloured images when *channels* is 1.
    """
    dataset = datasets.load(config, to_train=False)
    if channels == 1:
        dataset = replace(
            dataset,
            train_images=_grey(dataset.train_images, config.name),
            validation_images=_grey(dataset.validation_images, config.name),
            test_images=_grey(dataset.test_images, config.name),
        )
    kept = kept_to_compare(dataset)
    if len(dataset.train_labels) or (explained or len(dataset.test_labels)) > len(dataset.test_labels) - kept:
        return dataset
    last = dataset.evaluation_order[len(dataset.evaluation_order) - kept :]
    return replace(dataset, train_images=dataset.test_images[last], train_labels=dataset.test_labels[last])


def kept_to_compare(dataset: Dataset) -> int:
    """How many of the test images are to compare with, should they not be evaluated: a few of each class."""
    return min(REFERENCE * len(dataset.classes), len(dataset.test_labels) // 2)


def labelled(dataset: Dataset, outputs: Sequence[int], names: Sequence[str]) -> Dataset:
    """*dataset* with the network's *outputs* for labels, and their *names* for classes."""
    number = np.asarray(outputs, np.int64)
    return replace(
        dataset,
        classes=tuple(names),
        train_labels=number[dataset.train_labels],
        validation_labels=number[dataset.validation_labels],
        test_labels=number[dataset.test_labels],
    )


def normalised(images: Images, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """What the network sees of uint8 *images* (N, C, H, W)."""
    centre, scale = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    return (torch.tensor(images).float() / 255 - centre) / scale


def _grey(images: Images | ImageFiles, name: str) -> Images:
    if isinstance(images, ImageFiles) or (images != images[:, :1]).any():
        raise InputError(f"--mean: one value is for grey images, and those of {name} are coloured; give three values")
    return images[:, :1]
