"""ImageNet-S50 (Gao et al., Large-scale Unsupervised Semantic Segmentation, TPAMI 2022): ImageNet with objects' masks.

Folders as the ImageNet-S project prepares them from a copy of ImageNet: ``train/<category>/*.JPEG``,
``validation/<category>/*.JPEG`` and ``validation-segmentation/<category>/*.png``.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scl_ray.config import DatasetConfig, InputError
from scl_ray.datasets.files import (
    ImageFiles,
    check_same_size,
    content_hash,
    filled_images_in,
    folders_in,
    loaded,
    opened,
    threads,
)
from scl_ray.datasets.formats import Source

IMAGE_SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's training images, as everybody has them

# WordNet's number of each category and its name in ImageNet. In masks, a category's value is its place here, from 1.
CATEGORIES = {
    "n01443537": "goldfish",
    "n01491361": "tiger shark",
    "n01531178": "goldfinch",
    "n01644373": "tree frog",
    "n02104029": "kuvasz",
    "n02119022": "red fox",
    "n02123597": "Siamese cat",
    "n02133161": "American black bear",
    "n02165456": "ladybug",
    "n02281406": "sulphur butterfly",
    "n02325366": "wood rabbit",
    "n02342885": "hamster",
    "n02396427": "wild boar",
    "n02483362": "gibbon",
    "n02504458": "African elephant",
    "n02510455": "giant panda",
    "n02690373": "airliner",
    "n02747177": "ashcan",
    "n02783161": "ballpoint",
    "n02814533": "beach wagon",
    "n02859443": "boathouse",
    "n02917067": "bullet train",
    "n02992529": "cellular telephone",
    "n03014705": "chest",
    "n03047690": "clog",
    "n03095699": "container ship",
    "n03197337": "digital watch",
    "n03201208": "dining table",
    "n03445777": "golf ball",
    "n03452741": "grand piano",
    "n03584829": "iron",
    "n03630383": "lab coat",
    "n03775546": "mixing bowl",
    "n03791053": "motor scooter",
    "n03874599": "padlock",
    "n03891251": "park bench",
    "n04026417": "purse",
    "n04335435": "streetcar",
    "n04380533": "table lamp",
    "n04404412": "television",
    "n04447861": "toilet seat",
    "n04507155": "umbrella",
    "n04522168": "vase",
    "n04557648": "water bottle",
    "n04562935": "water tower",
    "n04612504": "yawl",
    "n06794110": "street sign",
    "n07749582": "lemon",
    "n07831146": "carbonara",
    "n12998815": "agaric",
}

_TRAIN, _TEST, _MASKS = "train", "validation", "validation-segmentation"
_SOURCE = "the ImageNet-S project (LUSSeg/ImageNet-S on GitHub) prepares these folders from a copy of ImageNet"

_Files = dict[str, dict[str, list[Path]]]


def read(config: DatasetConfig) -> Source:
    """Images that stay in their files; the project's validation images, which have masks, are the test images.

    An image is resized until its shorter side is 8/7 of ``config.image_size`` (default 224), and its middle is taken.
    The mask of an image is where it shows its own category; it may be empty once the middle is taken. Classes are the
    categories whose folders there are, in the order of their numbers, by their names in ImageNet.

    Raises InputError when images or masks are missing, or masks are not those of the images.
    """
    root = _root(config)
    size = config.image_size or IMAGE_SIZE
    files = _files(root)
    categories = tuple(files[_TEST])
    labels = {
        split: np.repeat(np.arange(len(categories)), [len(files[split].get(name, [])) for name in categories])
        for split in (_TRAIN, _TEST)
    }
    images = {split: _image_files(root, files[split], categories, size) for split in (_TRAIN, _TEST)}
    return Source(
        classes=tuple(CATEGORIES[name] for name in categories),
        train_images=images[_TRAIN],
        train_labels=labels[_TRAIN],
        test_images=images[_TEST],
        test_labels=labels[_TEST],
        test_masks=_masks(files, size),
        fingerprint=_fingerprint(root, files),
        statistics=(MEAN, STD),
    )


def fingerprint(config: DatasetConfig) -> str:
    """SHA-256 (hex) over the files' relative paths and bytes, masks included; see `files.content_hash`."""
    root = _root(config)
    return _fingerprint(root, _files(root))


def _fingerprint(root: Path, files: _Files) -> str:
    return content_hash(root, [path for split in files.values() for group in split.values() for path in group])


def centred(picture: Image.Image, side: int) -> Image.Image:
    """The middle of a picture whose shorter side becomes 8/7 of *side*: at 224 pixels, 256 (torchvision's rounding)."""
    return _middle(picture, side, Image.Resampling.BILINEAR)


def _middle(picture: Image.Image, side: int, resampling: Image.Resampling) -> Image.Image:
    shorter = round(side * 256 / 224)
    width, height = (shorter * length // min(picture.size) for length in picture.size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return picture.resize((width, height), resampling).crop((left, top, left + side, top + side))


def _root(config: DatasetConfig) -> Path:
    if config.root is None:
        raise InputError(
            f"dataset imagenet_s50: has no dataset.root; set it to the folder that holds {_TRAIN}/, {_TEST}/ and "
            f"{_MASKS}/ ({_SOURCE})"
        )
    return Path(config.root).expanduser().absolute()


def _files(root: Path) -> _Files:
    """``{"train": {category: paths}, "validation": …, "validation-segmentation": …}``, masks in the images' order.

    Without ``train/`` there are test images alone.
    """
    found: _Files = {_TRAIN: {}}
    for split in (_TRAIN, _TEST):
        place = root / split
        if place.is_dir():
            found[split] = {folder.name: filled_images_in(folder) for folder in folders_in(place)}
            _check_categories(place, found[split])
        elif split == _TEST:
            raise InputError(f"{place if root.is_dir() else root}: is no folder; set dataset.root to the folder that "
                             f"holds {_TRAIN}/, {_TEST}/ and {_MASKS}/ ({_SOURCE})")  # fmt: skip
    if found[_TRAIN]:
        for split, other in ((_TRAIN, _TEST), (_TEST, _TRAIN)):
            if lacking := sorted(found[split].keys() - found[other].keys()):
                raise InputError(f"{root / other}: lacks the category {lacking[0]} of {split}/; add {other}/"
                                 f"{lacking[0]}/ or remove the category")  # fmt: skip
    found[_MASKS] = {
        name: [root / _MASKS / name / f"{path.stem}.png" for path in paths] for name, paths in found[_TEST].items()
    }
    for path in (path for paths in found[_MASKS].values() for path in paths):
        if not path.is_file():
            raise InputError(f"{path}: is missing; every image of {_TEST}/ has a mask ({_SOURCE})")
    return found


def _check_categories(place: Path, categories: Iterable[str]) -> None:
    if not list(categories):
        raise InputError(f"{place}: holds zero images; it should have a folder for each category ({_SOURCE})")
    for name in categories:
        if name not in CATEGORIES:
            raise InputError(f"{place / name}: is no category of ImageNet-S50; set dataset.root to a folder of its 50 "
                             "categories or some of them, or read other images as image_folder")  # fmt: skip


def _image_files(root: Path, split: dict[str, list[Path]], categories: tuple[str, ...], size: int) -> ImageFiles:
    names = tuple(path.relative_to(root).as_posix() for name in categories for path in split.get(name, []))
    return ImageFiles(root, names, size, centred, is_cut_when_read=True)


def _masks(files: _Files, size: int) -> NDArray[np.bool_]:
    """Where each test image shows its own category, (N, size, size). Raises InputError for masks of something else."""
    numbers = {name: number for number, name in enumerate(CATEGORIES, start=1)}
    masks: list[NDArray[np.bool_]] = []
    with ThreadPoolExecutor(threads()) as pool:
        for name, paths in files[_MASKS].items():
            whole = list(pool.map(partial(_own, numbers[name]), paths, files[_TEST][name]))
            if not any(mask.any() for mask in whole):
                # Of a few images the annotators may have left the object out; of a whole category, they have not.
                raise InputError(f"{paths[0].parent}: no mask shows {CATEGORIES[name]}, whose pixels have R + 256 G = "
                                 f"{numbers[name]}; give the masks of ImageNet-S50 ({_SOURCE})")  # fmt: skip
            masks += [np.asarray(_middle(Image.fromarray(mask), size, Image.Resampling.NEAREST)) for mask in whole]
    return np.stack(masks)


def _own(number: int, path: Path, image: Path) -> NDArray[np.bool_]:
    """Where the mask at *path* has the *number* of its image's category; 0 is any other thing, 1000 to be ignored."""
    mask = loaded(opened(path), path)
    check_same_size(mask, path, image)
    red, green = np.asarray(mask.convert("RGB"), np.int64)[..., :2].transpose(2, 0, 1)
    return red + 256 * green == number
