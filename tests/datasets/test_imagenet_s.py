"""ImageNet-S50 from a small set in its layout: real photographs, masks as the project writes them."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import small_imagenet_s50 as small
import torch
from PIL import Image
from refusal import refused
from torchvision import transforms

from scl_ray import datasets
from scl_ray.config import DatasetConfig, InputError
from scl_ray.datasets.files import ImageFiles
from scl_ray.given import images

SIZE = 48


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("imagenet_s50")
    small.write(root)
    return root


@pytest.fixture
def changed(written: Path, tmp_path: Path) -> Path:
    """A copy to be changed at will."""
    return Path(shutil.copytree(written, tmp_path / "changed"))


def config(root: Path, **settings) -> DatasetConfig:
    return DatasetConfig(name="imagenet_s50", root=str(root), **({"image_size": SIZE} | settings))


def paths(root: Path, split: str) -> list[Path]:
    return [path for category in small.NUMBERS for path in sorted((root / split / category).iterdir())]


@pytest.mark.parametrize("size", [32, SIZE, 224])
def test_pixels_are_those_of_torchvisions_usual_transforms(written: Path, size: int) -> None:
    dataset = datasets.load(config(written, image_size=size))
    usual = transforms.Compose([transforms.Resize(round(size * 8 / 7)), transforms.CenterCrop(size)])
    expected = [np.asarray(usual(Image.open(path).convert("RGB"))) for path in paths(written, "validation")]
    assert np.array_equal(dataset.test_images[:], np.stack(expected).transpose(0, 3, 1, 2))


def test_splits_are_the_folders_and_classes_have_imagenets_names(written: Path) -> None:
    dataset = datasets.load(config(written))
    assert dataset.classes == small.NAMES
    assert np.array_equal(dataset.test_labels, np.arange(4).repeat(small.TEST))
    assert len(dataset.train_labels) + len(dataset.validation_labels) == 4 * small.TRAIN
    held = dataset.train_images.names + dataset.validation_images.names
    assert sorted(held) == sorted(path.relative_to(written).as_posix() for path in paths(written, "train"))
    for split in ("train", "validation"):
        images, labels = getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")
        assert [Path(name).parent.name for name in images.names] == [list(small.NUMBERS)[label] for label in labels]
    assert dataset.mean == (0.485, 0.456, 0.406)
    assert dataset.std == (0.229, 0.224, 0.225)


def test_masks_are_the_pixels_of_the_images_own_category_in_the_images_geometry(written: Path) -> None:
    dataset = datasets.load(config(written))
    usual = transforms.Compose(
        [transforms.Resize(round(SIZE * 8 / 7), transforms.InterpolationMode.NEAREST), transforms.CenterCrop(SIZE)]
    )
    for path, mask in zip(paths(written, "validation-segmentation"), dataset.test_masks, strict=True):
        red, green, _ = np.asarray(usual(Image.open(path)), np.int64).transpose(2, 0, 1)
        assert np.array_equal(mask, red + 256 * green == small.NUMBERS[path.parent.name])
        # Neither the rim, which is to be ignored, nor the other category at the left border.
        assert mask[SIZE // 2, SIZE // 2]
        assert not mask[:, 0].any()


def test_what_is_known_without_the_data(written: Path) -> None:
    info = datasets.INFO["imagenet_s50"]
    # The table of the ImageNet-S project's README.
    assert (info.classes, info.train_images, info.test_images) == (50, 64_431, 752)
    assert info.has_masks
    assert datasets.load(config(written, image_size=None)).image_size == info.image_size == 224


def test_the_names_of_the_categories_are_torchvisions() -> None:
    from torchvision.models import ResNet18_Weights

    from scl_ray.datasets.imagenet_s import CATEGORIES

    known = ResNet18_Weights.DEFAULT.meta["categories"]
    assert list(CATEGORIES) == sorted(CATEGORIES)
    # ImageNet's outputs are in the order of WordNet's numbers, and so are these.
    places = [known.index(name) for name in CATEGORIES.values()]
    assert places == sorted(places)
    assert len(places) == 50


def test_an_index_gives_what_an_arrays_would(written: Path) -> None:
    images = datasets.load(config(written)).test_images
    array = images[:]
    assert isinstance(images, ImageFiles)
    assert images.shape == array.shape == (12, 3, SIZE, SIZE)
    assert len(images) == 12
    assert array.dtype == np.uint8
    for index in (3, -1, slice(2, 9, 3), slice(0, 0), np.array([5, 5, 0]), np.arange(12) % 5 == 0):
        assert np.array_equal(images[index], array[index])


def test_every_image_is_decoded_before_any_work_and_not_again(
    written: Path, changed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets.load(config(written))
    with monkeypatch.context() as patch:
        patch.setattr(ImageFiles, "check", lambda *_: pytest.fail("decoded again"))
        patch.setattr(ImageFiles, "decode", lambda *_: pytest.fail("decoded"))
        datasets.load(config(written, image_size=64))
    broken = paths(changed, "train")[40]
    broken.write_bytes(broken.read_bytes()[:500])
    assert f"{broken}: cannot be read as an image" in refused(config(changed))
    # Only those that a given network sees.
    assert len(datasets.load(config(changed), to_train=False).test_images) == 12


def test_paths_alone_travel(written: Path) -> None:
    dataset = datasets.load(config(written))
    assert dataset.files_root == written
    travelled = pickle.loads(pickle.dumps(dataset.train_images))
    assert np.array_equal(travelled[:2], dataset.train_images[:2])
    assert len(pickle.dumps(travelled)) < 100 * len(travelled)


def test_pixels_do_not_depend_on_how_many_threads_read(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = datasets.load(config(written)).train_images
    alone = images[:]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert np.array_equal(images[:], alone)


def test_a_file_that_a_machine_does_not_see_is_named(changed: Path) -> None:
    images = datasets.load(config(changed)).test_images
    path = changed / images.names[4]
    path.unlink()
    with pytest.raises(InputError, match="every machine that takes part has to see dataset.root") as error:
        images[:]
    assert str(path) in str(error.value)


def test_fingerprint_follows_the_content_and_not_place_or_size(written: Path, changed: Path) -> None:
    before = datasets.fingerprint(config(written))
    assert datasets.load(config(written)).fingerprint == before
    assert datasets.fingerprint(config(changed, image_size=64)) == before
    path = paths(changed, "validation-segmentation")[0]
    small.mask(*Image.open(path).size, number=49).save(path)
    assert datasets.fingerprint(config(changed)) != before


def test_an_image_without_its_object_has_an_empty_mask(changed: Path) -> None:
    path = paths(changed, "validation-segmentation")[0]
    small.mask(*Image.open(path).size, number=49).save(path)
    masks = datasets.load(config(changed)).test_masks
    assert not masks[0].any()
    assert masks[1:].any(axis=(1, 2)).all()


def test_masks_of_something_else_are_refused(changed: Path) -> None:
    category = "n02123597"
    for path in paths(changed, "validation-segmentation"):
        if path.parent.name == category:
            small.mask(*Image.open(path).size, number=8).save(path)
    message = refused(config(changed))
    assert str(changed / "validation-segmentation" / category) in message
    assert "Siamese cat" in message


def test_a_mask_of_another_size_is_refused(changed: Path) -> None:
    path = paths(changed, "validation-segmentation")[5]
    small.mask(40, 30, number=7).save(path)
    assert f"{path}: is 40x30" in refused(config(changed))


@pytest.mark.parametrize("place", ["validation", "validation-segmentation"])
def test_what_a_split_lacks_is_named_with_where_to_get_it(changed: Path, place: str) -> None:
    shutil.rmtree(changed / place)
    message = refused(config(changed))
    assert str(changed / place) in message
    assert "LUSSeg/ImageNet-S" in message


def test_without_a_root_it_is_said_where_the_data_come_from() -> None:
    message = refused(DatasetConfig(name="imagenet_s50"))
    assert "dataset.root" in message
    assert "LUSSeg/ImageNet-S" in message


def test_folders_of_something_else_are_refused(changed: Path) -> None:
    (changed / "train" / "n02104029").rename(changed / "train" / "kuvasz")
    assert f"{changed / 'train' / 'kuvasz'}: is no category" in refused(config(changed))


def test_a_category_that_a_split_lacks_or_has_no_image_of_is_refused(changed: Path) -> None:
    (changed / "train" / "n02104029").rename(changed / "elsewhere")
    assert f"{changed / 'train'}: lacks the category n02104029" in refused(config(changed))
    (changed / "train" / "n02104029").mkdir()
    assert "zero images" in refused(config(changed))


def test_for_networks_that_are_trained_already_no_training_images_are_needed(changed: Path) -> None:
    whole = datasets.load(config(changed))
    shutil.rmtree(changed / "train")
    alone = datasets.load(config(changed), to_train=False)
    assert len(alone.train_labels) == 0
    assert alone.classes == whole.classes
    assert np.array_equal(alone.test_images[:], whole.test_images[:])
    assert "holds test images alone" in refused(config(changed))


def test_a_network_of_grey_images_is_not_for_photographs(written: Path) -> None:
    with pytest.raises(InputError, match="those of imagenet_s50 are coloured"):
        images.load(config(written), 1, 5)
    assert images.load(config(written), 3, 5).test_images.shape == (12, 3, SIZE, SIZE)


def test_test_images_alone_are_compared_with_the_last_that_are_not_evaluated(changed: Path) -> None:
    shutil.rmtree(changed / "train")
    dataset = images.load(config(changed), 3, 6)
    last = dataset.evaluation_order[6:]
    assert np.array_equal(dataset.train_images, dataset.test_images[last])
