"""A dataset of the user's own: ``module:callable`` that returns a mapping of arrays."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from scl_ray import plugins
from scl_ray.config import DatasetConfig, InputError
from scl_ray.datasets.formats import Source

_NEEDED = ("train_images", "train_labels", "test_images", "test_labels")
_OPTIONAL = ("classes", "test_masks")


def read(config: DatasetConfig) -> Source:
    """Call it, with ``dataset.root`` when there is one, and check what it returns.

    Needed: ``train_images`` and ``test_images``, uint8 (N, 3, H, W) or (N, 1, H, W); ``train_labels`` and
    ``test_labels``, (N,) whole numbers from 0. Optional: ``classes``, their names; ``test_masks`` (N, H, W), non-zero
    on the object. Raises InputError when something else comes back.
    """
    name = f"dataset {config.name}"
    function = plugins.load(config.name)
    try:
        arrays = function(*([] if config.root is None else [config.root]))
    except Exception as error:  # a user's function may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{name}: raised {reason}; it is called with dataset.root where there is one") from error
    if not isinstance(arrays, Mapping) or not set(_NEEDED) <= set(arrays) <= {*_NEEDED, *_OPTIONAL}:
        raise InputError(
            f"{name}: must return a mapping of {', '.join(_NEEDED)} and, if wanted, {', '.join(_OPTIONAL)}"
        )
    images = {split: _images(arrays[f"{split}_images"], f"{name}: {split}_images") for split in ("train", "test")}
    labels = {
        split: _labels(arrays[f"{split}_labels"], len(images[split]), f"{name}: {split}_labels")
        for split in ("train", "test")
    }
    count = 1 + max(int(values.max()) for values in labels.values())
    classes = tuple(str(label) for label in arrays.get("classes", range(count)))
    if len(classes) < count:
        raise InputError(f"{name}: has labels up to {count - 1} but names {len(classes)} classes; name every class")
    if absent := [label for number, label in enumerate(classes) if number not in labels["train"]]:
        raise InputError(f"{name}: has no training image of the class {absent[0]!r}; add some or leave the class out")
    masks = arrays.get("test_masks")
    if masks is not None and np.shape(masks) != (len(images["test"]), *images["test"].shape[2:]):
        raise InputError(f"{name}: test_masks is {np.shape(masks)}; return one mask (H, W) for each test image")
    return Source(
        classes=classes,
        train_images=images["train"],
        train_labels=labels["train"],
        test_images=images["test"],
        test_labels=labels["test"],
        test_masks=None if masks is None else np.asarray(masks) != 0,
    )


def _images(values: object, what: str) -> NDArray[np.uint8]:
    images = np.asarray(values)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise InputError(f"{what} is {images.dtype} {images.shape}; return uint8 (N, 3, H, W) or (N, 1, H, W)")
    if len(images) == 0:
        raise InputError(f"{what} holds zero images; return at least one of each class")
    return images


def _labels(values: object, count: int, what: str) -> NDArray[np.int64]:
    labels = np.asarray(values)
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer) or (labels < 0).any():
        raise InputError(
            f"{what} is {labels.dtype} {labels.shape}; return a whole number from 0 for each of {count} images"
        )
    return labels.astype(np.int64)
