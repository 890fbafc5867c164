"""Images in folders: ``train/<class>/``, ``test/<class>/`` and, beside them, ``masks/<class>/<stem>.png``.

For networks that are trained already, ``<class>/`` may stand there directly: then all are test images.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from scl_ray.config import DatasetConfig, InputError
from scl_ray.datasets.formats import Source

DEFAULT_IMAGE_SIZE = 224
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif"}


def read(config: DatasetConfig) -> Source:
    """Every image, squeezed to a square of ``config.image_size`` (default 224) pixels: nothing is cropped away.

    Classes are the sub-folders of ``test/`` in the order of their names; images stand in the order of their paths.
    Where ``masks/`` exists, every test image has one, of its own size, non-zero on the object.
    """
    root = _root(config)
    size = config.image_size or DEFAULT_IMAGE_SIZE
    files = _files(root)
    classes = tuple(files["test"])
    paths = {split: [path for label in classes for path in files[split].get(label, [])] for split in files}
    labels = {
        split: np.repeat(np.arange(len(classes)), [len(files[split].get(label, [])) for label in classes])
        for split in ("train", "test")
    }
    return Source(
        classes=classes,
        train_images=_images_of(paths["train"], size),
        train_labels=labels["train"],
        test_images=_images_of(paths["test"], size),
        test_labels=labels["test"],
        test_masks=np.stack([_mask(path, size) for path in paths["masks"]]) if paths["masks"] else None,
        fingerprint=fingerprint(config),
    )


def fingerprint(config: DatasetConfig) -> str:
    """SHA-256 over the files' relative paths and bytes, masks included.

    Kept in ``~/.cache/scl_ray`` (``$XDG_CACHE_HOME``) under the files' paths, sizes and times of change, so that an
    unchanged folder is read once.
    """
    root = _root(config)
    paths = [path for split in _files(root).values() for group in split.values() for path in group]
    stats = [(path, path.stat()) for path in paths]
    listing = "\n".join(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}" for path, stat in stats)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scl_ray" / "fingerprints"
    record = cache / hashlib.sha256(listing.encode()).hexdigest()
    if record.is_file():
        return record.read_text()
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    try:
        cache.mkdir(parents=True, exist_ok=True)
        partial = record.with_name(f"{record.name}.{os.getpid()}.partial")
        partial.write_text(digest.hexdigest())
        partial.replace(record)
    except OSError:
        pass  # a home that cannot be written costs reading the files again, nothing else
    return digest.hexdigest()


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
        found[split] = {folder.name: _images(folder) for folder in _folders(place)}
        if alone:
            found[split].pop("masks", None)
        for label, paths in found[split].items():
            if not paths:
                known = ", ".join(sorted(_SUFFIXES))
                raise InputError(f"{place / label}: holds zero images; add some ({known})")
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
    return any(_images(folder) for folder in _folders(root))


def _folders(split: Path) -> list[Path]:
    return sorted(folder for folder in split.iterdir() if folder.is_dir() and not folder.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    # Names decide the order, on every file system.
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES and not p.name.startswith("."))


def _images_of(paths: list[Path], size: int) -> NDArray[np.uint8]:
    return np.stack([_image(path, size) for path in paths]) if paths else np.empty((0, 3, size, size), np.uint8)


def _image(path: Path, size: int) -> NDArray[np.uint8]:
    with _opened(path) as image:
        # Pillow's bilinear filter is antialiased.
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def _mask(path: Path, size: int) -> NDArray[np.bool_]:
    with _opened(path) as image:
        # Without an alpha channel, which is non-zero everywhere; palettes count by index, as in segmentation sets.
        values = np.asarray(image if image.mode in ("1", "L", "P", "I", "I;16", "F") else image.convert("RGB"))
        inside = values.any(axis=-1) if values.ndim == 3 else values != 0
        return np.asarray(Image.fromarray(inside).resize((size, size), Image.Resampling.NEAREST), np.bool_)


def _opened(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as an image ({error}); replace or remove it") from error
    return image
