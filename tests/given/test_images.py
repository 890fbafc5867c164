"""Datasets for networks that are trained already: test images alone, grey ones, and those to compare with."""

from pathlib import Path

import given_networks as given
import numpy as np
import pytest

from scl_ray import datasets
from scl_ray.config import DatasetConfig, InputError
from scl_ray.given import images


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    given.write_digits(root)
    return root


def config(root: Path) -> DatasetConfig:
    return DatasetConfig(name="image_folder", root=str(root), image_size=given.SIZE)


def test_class_folders_alone_are_the_same_test_images(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    whole, alone = datasets.load(config(folder)), datasets.load(config(folder / "test"), to_train=False)
    assert alone.classes == whole.classes
    assert np.array_equal(alone.test_images, whole.test_images)
    assert np.array_equal(alone.evaluation_order, whole.evaluation_order)
    assert len(alone.train_labels) == len(alone.validation_labels) == 0
    assert alone.fingerprint != whole.fingerprint
    with pytest.raises(InputError, match="holds test images alone"):
        datasets.load(config(folder / "test"))


def test_images_to_compare_with_are_the_last_that_are_not_evaluated(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    few, more = (images.load(config(folder / "test"), 3, explained) for explained in (5, 30))
    last = few.evaluation_order[30:]
    assert np.array_equal(few.train_images, few.test_images[last])
    assert np.array_equal(few.train_labels, few.test_labels[last])
    # The same whatever is evaluated, so that more images change no score.
    assert np.array_equal(few.train_images, more.train_images)
    for everything in (31, None):
        assert len(images.load(config(folder / "test"), 3, everything).train_labels) == 0
    # Where there are training images, they are compared with.
    assert len(images.load(config(folder), 3, None).train_labels) == 270


def test_one_channel_is_for_grey_images(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert images.load(config(folder), 1, 5).test_images.shape == (60, 1, 16, 16)
    from PIL import Image

    path = next((folder / "test").rglob("*.png"))
    before = path.read_bytes()
    Image.new("RGB", (16, 16), (200, 10, 10)).save(path)
    with pytest.raises(InputError, match="one value is for grey images"):
        images.load(config(folder), 1, 5)
    path.write_bytes(before)


def test_labels_become_the_outputs_that_stand_for_them() -> None:
    digits = datasets.load(DatasetConfig(name="digits", image_size=8))
    outputs, names = tuple(range(12, 2, -1)), tuple(f"output {number}" for number in range(13))
    found = images.labelled(digits, outputs, names)
    assert found.classes == names
    for split in ("train", "validation", "test"):
        assert np.array_equal(getattr(found, f"{split}_labels"), 12 - getattr(digits, f"{split}_labels"))
    assert found.test_images is digits.test_images
