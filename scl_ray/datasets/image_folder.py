"""Images in folders: ``train/<class>/``, ``test/<class>/`` and, beside them, ``masks/<class>/<stem>.png``.

For networks that are trained already, ``<class>/`` may stand there directly: then all are test images.
"""

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
    images_in,
    loaded,
    opened,
)
from scl_ray.datasets.formats import Source

DEFAULT_IMAGE_SIZE = 224
IN_MEMORY = 4 * 2**30  # bytes of pixels, beyond which images stay in their files


def read(config: DatasetConfig) -> Source:
    """Every image, squeezed to a square of ``config.image_size`` (default 224) pixels: nothing is cropped away.

    Classes are the sub-folders of ``test/`` in the order of their names; images stand in the order of their paths.
    Where ``masks/`` exists, every test image has one, of its own size, non-zero on the object. Images that would take
    more than 4 GiB in memory stay in their files; what is made of them is the same.
    """
    root = _root(config)
    size = config.image_size or DEFAULT_IMAGE_SIZE
    files = _files(root)
    classes = tuple(files["test"])
    labels = {
        split: np.repeat(np.arange(len(classes)), [len(files[split].get(label, [])) for label in classes])
        for split in ("train", "test")
    }
    images = {split: _image_files(root, files[split], classes, size) for split in ("train", "test")}
    masks = [path for label in classes for path in files["masks"].get(label, [])]
    is_small = sum(int(np.prod(images[split].shape)) for split in images) <= IN_MEMORY
    return Source(
        classes=classes,
        train_images=images["train"][:] if is_small else images["train"],
        train_labels=labels["train"],
        test_images=images["test"][:] if is_small else images["test"],
        test_labels=labels["test"],
        test_masks=_masks(masks, images["test"], size) if masks else None,
        fingerprint=_fingerprint(root, files),
    )


def fingerprint(config: DatasetConfig) -> str:
    """SHA-256 (hex) over the files' relative paths and bytes, masks included; see `files.content_hash`."""
    root = _root(config)
    return _fingerprint(root, _files(root))


def _fingerprint(root: Path, files: dict[str, dict[str, list[Path]]]) -> str:
    return content_hash(root, [path for split in files.values() for group in split.values() for path in group])


def squeezed(picture: Image.Image, side: int) -> Image.Image:
    """The whole picture as a square, by Pillow's bilinear filter, which is antialiased."""
    return picture.resize((side, side), Image.Resampling.BILINEAR)


def _image_files(root: Path, split: dict[str, list[Path]], classes: tuple[str, ...], size: int) -> ImageFiles:
    names = tuple(path.relative_to(root).as_posix() for label in classes for path in split.get(label, []))
    return ImageFiles(root, names, size, squeezed, is_cut_when_read=False)


def _root(config: DatasetConfig) -> Path:
    if config.root is None:
        raise InputError("dataset image_folder: has no dataset.root; set it to the folder that holds train/ and test/")
    return Path(config.root).expanduser().absolute()


def _files(root: Path) -> dict[str, dict[str, list[Path]]]:
    """``{"train": {class: paths}, "test": …, "masks": …}``, masks in the order of the test images, {} without any."""
    found: dict[str, dict[str, list[Path]]] = {"train": {}}
    alone = _is_of_classes(root)
    for split, place in {"test": root}.items() if alone else ((name, root / name) for name in ("train", "test")):
        if not place.is_dir():
            missing = place if root.is_dir() else root
            raise InputError(f"{missing}: is no folder; set dataset.root to a folder that holds train/ and test/ with "
                             "a folder per class, or, where nothing is trained, those folders alone")  # fmt: skip
        classes = [folder for folder in folders_in(place) if not (alone and folder.name == "masks")]
        found[split] = {folder.name: filled_images_in(folder) for folder in classes}
    if not alone:
        _check_same_classes(root, found)
    found["masks"] = {}
    if (root / "masks").is_dir():
        for label, paths in found["test"].items():
            found["masks"][label] = [root / "masks" / label / f"{path.stem}.png" for path in paths]
            for mask in found["masks"][label]:
                if not mask.is_file():
                    raise InputError(f"{mask}: is missing; masks/ has a mask for every image of test/, or is not there")
    return found


def _check_same_classes(root: Path, found: dict[str, dict[str, list[Path]]]) -> None:
    if not found["train"]:
        raise InputError(f"{root / 'train'}: holds zero images; add a folder of images for each class")
    for split, other in (("train", "test"), ("test", "train")):
        if lacking := sorted(found[split].keys() - found[other].keys()):
            name = f"{other}/{lacking[0]}/"
            raise InputError(
                f"{root / other}: lacks the class {lacking[0]!r} of {split}/; add {name} or remove the class"
            )


def _is_of_classes(root: Path) -> bool:
    """Whether the classes' folders stand in *root* itself, so that there are test images alone."""
    if not root.is_dir() or any((root / split).is_dir() for split in ("train", "test")):
        return False
    return any(images_in(folder) for folder in folders_in(root))


def _masks(paths: list[Path], images: ImageFiles, size: int) -> NDArray[np.bool_]:
    pictures = (images.root / name for name in images.names)
    return np.stack([_mask(path, picture, size) for path, picture in zip(paths, pictures, strict=True)])


def _mask(path: Path, picture: Path, size: int) -> NDArray[np.bool_]:
    image = loaded(opened(path), path)
    check_same_size(image, path, picture)
    # Without an alpha channel, which is non-zero everywhere; palettes count by index, as in segmentation sets.
    values = np.asarray(image if image.mode in ("1", "L", "P", "I", "I;16", "F") else image.convert("RGB"))
    inside = values.any(axis=-1) if values.ndim == 3 else values != 0
    return np.asarray(Image.fromarray(inside).resize((size, size), Image.Resampling.NEAREST), np.bool_)
