"""Images in files: which of them a folder holds, a hash of their content, and pixels decoded when they are indexed."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from scl_ray.config import InputError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif"}
AT_ONCE = 16  # images that a thread decodes in one go

# From the sizes (n, 2) of n images, height and width in pixels, the parts of them that V views show: (V, n, 4) of top,
# left, height and width.
Boxes = Callable[[NDArray[np.int64]], NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """uint8 images (N, 3, S, S) that stay in their files and are decoded, by several threads, when they are indexed.

    An index is a number, a slice or an array, as of the array that this stands for. Indexing raises InputError for a
    file that cannot be read.

    root: of the files; names: their paths relative to it; side: S, in pixels.
    fit: what makes such a square of a whole picture.
    is_cut_when_read: whether random crops are cut from a file's own pixels, or from the square, as in memory.
    """

    root: Path
    names: tuple[str, ...]
    side: int
    fit: Callable[[Image.Image, int], Image.Image]
    is_cut_when_read: bool

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.names), 3, self.side, self.side

    def __getitem__(self, index: int | slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        chosen = np.arange(len(self))[index]
        pixels = np.empty((1, chosen.size, self.side, self.side, 3), np.uint8)
        spans = [slice(first, first + AT_ONCE) for first in range(0, chosen.size, AT_ONCE)]
        with ThreadPoolExecutor(threads()) as pool:
            list(pool.map(lambda span: self.decode(chosen.reshape(-1)[span], pixels[:, span]), spans))
        return pixels[0].transpose(0, 3, 1, 2).reshape(*chosen.shape, *self.shape[1:])

    def of(self, indices: NDArray[np.int64]) -> "ImageFiles":
        """Some of the images; none is decoded."""
        return replace(self, names=tuple(self.names[index] for index in indices))

    def check(self) -> None:
        """Decode every file once. Raises InputError for the first that cannot be read."""

        def check(names: tuple[str, ...]) -> None:
            for path in (self.root / name for name in names):
                coloured(opened(path), path)

        groups = (self.names[first : first + AT_ONCE] for first in range(0, len(self), AT_ONCE))
        with ThreadPoolExecutor(threads()) as pool:
            list(pool.map(check, groups))

    def decode(self, indices: Sequence[int] | NDArray[np.int64], into: NDArray[np.uint8]) -> None:
        """Write the squares of n images *into* (V, n, S, S, 3): the same in each of V views."""
        for place, index in enumerate(indices):
            path = self.root / self.names[index]
            into[:, place] = np.asarray(self.fit(coloured(opened(path), path), self.side))

    def decode_parts(self, indices: Sequence[int] | NDArray[np.int64], boxes: Boxes, into: NDArray[np.uint8]) -> None:
        """Write parts of n images, cut from the files' own pixels, *into* (V, n, S, S, 3). A file is decoded once."""
        paths = [self.root / self.names[index] for index in indices]
        pictures = [opened(path) for path in paths]
        cuts = boxes(np.array([(picture.height, picture.width) for picture in pictures]))
        for place, (path, picture) in enumerate(zip(paths, pictures, strict=True)):
            whole = coloured(picture, path)
            for view, (top, left, height, width) in enumerate(cuts[:, place].tolist()):
                part = whole.crop((left, top, left + width, top + height))
                into[view, place] = np.asarray(part.resize((self.side, self.side), Image.Resampling.BILINEAR))


def threads() -> int:
    """How many threads decode: as many as compute, which a task of a cluster bounds to its share."""
    return torch.get_num_threads()


def opened(path: Path) -> Image.Image:
    """The picture at *path*, of which only the header is read so far. Raises InputError."""
    with _readable(path):
        return Image.open(path)


def loaded(picture: Image.Image, path: Path) -> Image.Image:
    """The picture, opened from *path*, with its pixels. Raises InputError."""
    with _readable(path):
        picture.load()
    return picture


def coloured(picture: Image.Image, path: Path) -> Image.Image:
    """The picture, opened from *path*, in red, green and blue of 8 bits each. Raises InputError."""
    if picture.mode.startswith(("I", "F")):
        # Pillow would cut off at 255 whatever is brighter, without a word.
        raise InputError(f"{path}: has more than 8 bits a pixel, of a range that is not known; save it with 8 bits")
    return loaded(picture, path).convert("RGB")


def check_same_size(mask: Image.Image, path: Path, image: Path) -> None:
    """Raise InputError unless the *mask* at *path* is as large as the picture at *image*."""
    if mask.size != opened(image).size:
        raise InputError(f"{path}: is {mask.width}x{mask.height}, and its image {image.name} is not; replace the mask, "
                         "or remove both")  # fmt: skip


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{path}: is not there; every machine that takes part has to see dataset.root") from error
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as an image ({error}); replace or remove it") from error


def folders_in(place: Path) -> list[Path]:
    return sorted(folder for folder in place.iterdir() if folder.is_dir() and not folder.name.startswith("."))


def images_in(folder: Path) -> list[Path]:
    # Names decide the order, on every file system.
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def filled_images_in(folder: Path) -> list[Path]:
    """As `images_in`. Raises InputError when there is none."""
    paths = images_in(folder)
    if not paths:
        raise InputError(f"{folder}: holds zero images; add some ({', '.join(sorted(SUFFIXES))})")
    return paths


def content_hash(root: Path, paths: Sequence[Path]) -> str:
    """SHA-256 (hex) over the paths relative to *root* and the bytes of files.

    Remembered under the files' paths, sizes and times of change, so that an unchanged folder is read once.
    """
    stats = [(path, path.stat()) for path in paths]
    listing = "\n".join(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}" for path, stat in stats)

    def hashed() -> str:
        digest = hashlib.sha256()
        for path, stat in stats:
            digest.update(f"{path.relative_to(root).as_posix()}\0{stat.st_size}\0".encode())
            digest.update(path.read_bytes())
        return digest.hexdigest()

    return remembered("fingerprints", listing, hashed)


def remembered(kind: str, key: str, compute: Callable[[], str]) -> str:
    """What *compute* gives, kept in ``~/.cache/scl_ray`` (``$XDG_CACHE_HOME``) under *kind* and *key*."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scl_ray" / kind
    record = folder / hashlib.sha256(key.encode()).hexdigest()
    if record.is_file():
        return record.read_text()
    value = compute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = record.with_name(f"{record.name}.{os.getpid()}.partial")
        partial.write_text(value)
        partial.replace(record)
    except OSError:
        pass  # a home that cannot be written costs computing again, nothing else
    return value
