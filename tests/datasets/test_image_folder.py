"""Folders of images of any size and format, with and without masks, in memory and in their files."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from refusal import refused
from sklearn.datasets import load_digits

from scl_ray import datasets
from scl_ray.augment import AUGMENTATIONS
from scl_ray.config import DatasetConfig
from scl_ray.datasets import image_folder
from scl_ray.datasets.files import ImageFiles
from scl_ray.feed import Feed


@pytest.fixture
def folder(tmp_path) -> Path:
    """Digits as pictures of several sizes and formats, with masks of the ink."""
    root = tmp_path / "pictures"
    images, labels = load_digits(return_X_y=True)
    for number in range(60):
        split, label = ("train", "test")[number % 4 == 0], ("zero", "one", "two")[labels[number] % 3]
        ink = np.round(images[number].reshape(8, 8) * 255 / 16).astype(np.uint8)
        picture = Image.fromarray(ink).resize((40 + number % 5, 56), Image.Resampling.BICUBIC)
        suffix = "png" if number % 2 else "jpg"
        for place, image in (
            (split, picture),
            *([("masks", picture.point(lambda v: v > 128))] if split == "test" else []),
        ):
            path = root / place / label / f"{number:03d}.{'png' if place == 'masks' else suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    return root


def folder_config(root: Path, **settings) -> DatasetConfig:
    return DatasetConfig(name="image_folder", root=str(root), **settings)


class TestImageFolder:
    def test_reads_images_of_any_size_in_the_order_of_their_names(self, folder):
        dataset = datasets.load(folder_config(folder, image_size=48))
        assert dataset.classes == ("one", "two", "zero")
        assert dataset.test_images.shape == (15, 3, 48, 48)
        paths = [path for label in dataset.classes for path in sorted((folder / "test" / label).iterdir())]
        for image, label, mask, path in zip(
            dataset.test_images, dataset.test_labels, dataset.test_masks, paths, strict=True
        ):
            assert dataset.classes[label] == path.parent.name
            picture = Image.open(path).convert("RGB").resize((48, 48), Image.Resampling.BILINEAR)
            assert np.array_equal(image, np.asarray(picture).transpose(2, 0, 1))
            assert (image[0][mask] > 64).mean() > 0.95  # the mask is on the ink
        assert datasets.load(folder_config(folder)).image_size == 224

    def test_without_masks_there_are_none(self, folder):
        for path in sorted((folder / "masks").rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        (folder / "masks").rmdir()
        assert datasets.load(folder_config(folder, image_size=16)).test_masks is None

    def test_masks_count_by_colour_or_by_index_but_not_by_transparency(self, folder):
        first, second = sorted((folder / "masks" / "one").iterdir())[:2]
        (width, height), other = (Image.open(path).size for path in (first, second))
        coloured = Image.new("RGBA", (width, height), (0, 0, 0, 255))
        coloured.paste((0, 0, 9, 255), (0, 0, width // 2, height))
        indexed = Image.new("P", other, 0)
        indexed.putpalette([0, 0, 0] * 256)
        indexed.paste(7, (0, 0, other[0] // 2, height))
        coloured.save(first)
        indexed.save(second)
        masks = datasets.load(folder_config(folder, image_size=48)).test_masks
        expected = np.zeros((48, 48), bool)
        expected[:, :24] = True
        assert np.array_equal(masks[0], expected)
        assert np.array_equal(masks[1], expected)

    def test_fingerprint_follows_the_content_and_not_the_place(self, folder, tmp_path):
        before = datasets.fingerprint(folder_config(folder))
        assert datasets.load(folder_config(folder, image_size=16)).fingerprint == before
        moved = folder.rename(tmp_path / "moved")
        assert datasets.fingerprint(folder_config(moved)) == before
        next((moved / "masks" / "one").iterdir()).write_bytes(b"something else")
        assert datasets.fingerprint(folder_config(moved)) != before

    def test_fingerprint_of_an_unchanged_folder_is_not_computed_again(self, folder, tmp_path):
        before = datasets.fingerprint(folder_config(folder))
        (record,) = (tmp_path / "cache" / "scl_ray" / "fingerprints").iterdir()
        assert record.read_text() == before
        record.write_text("kept")
        assert datasets.fingerprint(folder_config(folder)) == "kept"
        (folder / "train" / "one" / "new.png").write_bytes(next((folder / "train" / "one").glob("*.png")).read_bytes())
        assert datasets.fingerprint(folder_config(folder)) not in ("kept", before)

    def test_a_home_that_cannot_be_written_costs_nothing_but_time(self, folder, tmp_path, monkeypatch):
        before = datasets.fingerprint(folder_config(folder))
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        assert datasets.fingerprint(folder_config(folder)) == before

    def test_a_class_missing_in_test_is_refused(self, folder):
        for path in (folder / "test" / "two").iterdir():
            path.unlink()
        (folder / "test" / "two").rmdir()
        message = refused(folder_config(folder))
        assert "'two'" in message
        assert str(folder / "test") in message

    def test_an_empty_class_is_refused(self, folder):
        for path in (folder / "test" / "two").iterdir():
            path.unlink()
        assert "zero images" in refused(folder_config(folder))

    def test_a_folder_without_any_image_is_refused(self, tmp_path):
        for split in ("train", "test"):
            (tmp_path / "empty" / split).mkdir(parents=True)
        assert "zero images" in refused(folder_config(tmp_path / "empty"))

    @pytest.mark.parametrize("place", ["train", "masks"])
    def test_an_unreadable_image_is_named(self, folder, place):
        path = sorted((folder / place / "one").iterdir())[1]
        path.write_bytes(path.read_bytes()[:40])
        assert str(path) in refused(folder_config(folder))

    def test_a_mask_of_another_size_is_refused(self, folder):
        path = next((folder / "masks" / "one").iterdir())
        Image.open(path).rotate(90, expand=True).save(path)
        assert f"{path}: is 56x4" in refused(folder_config(folder))

    @pytest.mark.parametrize("in_memory", [True, False])
    @pytest.mark.parametrize(("values", "suffix"), [(np.uint16, "png"), (np.int32, "tif"), (np.float32, "tif")])
    def test_images_of_more_than_eight_bits_are_refused(self, folder, monkeypatch, values, suffix, in_memory):
        """Not cut off at 255, which would leave most of them white."""
        path = folder / "train" / "one" / f"deep.{suffix}"
        Image.fromarray(np.arange(0, 40_000, 100).reshape(20, 20).astype(values)).save(path)
        monkeypatch.setattr(image_folder, "IN_MEMORY", 2**32 if in_memory else 0)
        message = refused(folder_config(folder, image_size=16))
        assert f"{path}: has more than 8 bits" in message

    def test_a_missing_mask_is_named(self, folder):
        path = next((folder / "masks" / "one").iterdir())
        path.unlink()
        assert str(path) in refused(folder_config(folder))

    def test_a_missing_folder_is_named(self, tmp_path):
        assert str(tmp_path / "train") in refused(folder_config(tmp_path))
        assert "dataset.root" in refused(DatasetConfig(name="image_folder"))

    def test_too_few_images_to_validate_on_are_refused(self, folder):
        assert "dataset.validation" in refused(folder_config(folder, validation=0.001, image_size=8))

    def test_a_class_alone_is_refused_where_something_is_trained(self, folder):
        for label in ("two", "zero"):
            for split in ("train", "test", "masks"):
                shutil.rmtree(folder / split / label)
        assert "the class 'one' alone" in refused(folder_config(folder, image_size=8))
        assert datasets.load(folder_config(folder, image_size=8), to_train=False).classes == ("one",)

    def test_a_class_without_a_training_image_is_refused(self, folder):
        for label in ("one", "two", "zero"):
            for path in sorted((folder / "train" / label).iterdir())[1:]:
                path.unlink()
        message = refused(folder_config(folder, validation=0.4, image_size=8))
        assert "would be validation images" in message

    def test_images_beyond_what_memory_should_hold_stay_in_their_files_and_are_the_same(
        self, folder, tmp_path, monkeypatch
    ):
        config = folder_config(folder, image_size=32)
        held = datasets.load(config)
        monkeypatch.setattr(image_folder, "IN_MEMORY", 60 * 3 * 32 * 32)
        assert isinstance(datasets.load(config).train_images, np.ndarray)
        monkeypatch.setattr(image_folder, "IN_MEMORY", 60 * 3 * 32 * 32 - 1)
        files = datasets.load(config)
        assert held.files_root is None
        assert files.files_root == folder
        for name in ("train_images", "validation_images", "test_images"):
            assert isinstance(getattr(files, name), ImageFiles)
            assert np.array_equal(getattr(files, name)[:], getattr(held, name))
        assert (files.mean, files.std, files.fingerprint) == (held.mean, held.std, held.fingerprint)
        assert np.array_equal(files.test_masks, held.test_masks)
        # Random crops are cut from the same square, too.
        settings = {"batch_size": 20, "views": 2, "augmentation": AUGMENTATIONS["contrastive"]}
        epochs = [
            Feed(dataset, torch.device("cpu"), **settings).epoch(torch.Generator().manual_seed(0))
            for dataset in (held, files)
        ]
        for (images, labels), (again, others) in zip(*epochs, strict=True):
            assert torch.equal(images, again)
            assert torch.equal(labels, others)

    def test_statistics_of_images_in_files_are_computed_once(self, folder, monkeypatch):
        monkeypatch.setattr(image_folder, "IN_MEMORY", 0)
        one = datasets.load(folder_config(folder, image_size=16))
        monkeypatch.setattr(ImageFiles, "__getitem__", lambda *_: pytest.fail("decoded"))
        again = datasets.load(folder_config(folder, image_size=16))
        assert (again.mean, again.std) == (one.mean, one.std)
