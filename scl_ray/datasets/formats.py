"""The well-known datasets in the formats they are published in: scikit-learn's digits, IDX (MNIST), CIFAR's batches.

Nothing is unpickled freely: CIFAR's batch files are pickles, and the reader below lets them build plain arrays only.
torchvision (names, addresses, checksums, download) and scikit-learn take seconds to import, so they are imported where
their data is read.
"""

import gzip
import io
import pickle
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
from numpy.typing import NDArray

from scl_ray.config import DatasetConfig, InputError
from scl_ray.datasets.files import ImageFiles
from scl_ray.datasets.splits import stratified_order

Statistics = tuple[tuple[float, ...], tuple[float, ...]]

DIGITS_TEST_IMAGES = 360


@dataclass(frozen=True, eq=False)
class Source:
    """A dataset as it is stored: images uint8 (N, C, h, w) with C 1 or 3, labels int64 (N,), test masks (N, h, w)."""

    classes: tuple[str, ...]
    train_images: NDArray[np.uint8] | ImageFiles
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8] | ImageFiles
    test_labels: NDArray[np.int64]
    test_masks: NDArray[np.bool_] | None = None
    fingerprint: str | None = None  # where the content's hash is known without the arrays
    statistics: Statistics | None = None  # mean and standard deviation by channel, where they are agreed on


def digits(config: DatasetConfig) -> Source:
    """scikit-learn's handwritten digits (UCI, 8x8, 0 to 16): 1797 images, 360 of them, stratified, for testing."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = np.round(images.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = labels.astype(np.int64)
    order = stratified_order(labels)
    test, train = np.sort(order[:DIGITS_TEST_IMAGES]), np.sort(order[DIGITS_TEST_IMAGES:])
    return Source(tuple(map(str, range(10))), images[train], labels[train], images[test], labels[test])


def mnist(config: DatasetConfig) -> Source:
    """MNIST (LeCun et al. 1998) from its IDX files."""
    return _idx(config, "MNIST")


def fashion_mnist(config: DatasetConfig) -> Source:
    """Fashion-MNIST (Xiao et al. 2017) from its IDX files."""
    debian = ", or apt-get install dataset-fashion-mnist and set dataset.root to /usr/share/datasets/fashion-mnist"
    return _idx(config, "FashionMNIST", hint=debian)


def cifar10(config: DatasetConfig) -> Source:
    """CIFAR-10 (Krizhevsky 2009) from its batch files."""
    return _cifar(config, "CIFAR10", label_key="labels")


def cifar100(config: DatasetConfig) -> Source:
    """CIFAR-100 (Krizhevsky 2009), its 100 fine classes, from its batch files."""
    return _cifar(config, "CIFAR100", label_key="fine_labels")


def _idx(config: DatasetConfig, name: str, hint: str = "") -> Source:
    """Files as they are published (.gz) or unpacked, in torchvision's place below the root or in the root itself."""
    from torchvision import datasets as published

    known, root = getattr(published, name), _root(config)
    folder = root / name / "raw"
    names = [Path(file).stem for file, _ in known.resources]
    if config.download and not all((folder / file).exists() for file in names):
        _download(config, lambda: known(root, download=True))
    if not all(_packed_or_not(folder / file) for file in names):
        folder = root
    if not all(_packed_or_not(folder / file) for file in names):
        raise _missing(config, f"{name}/raw/{names[0]} with the three files that belong to it", hint)
    train_images, train_labels, test_images, test_labels = (
        _read_idx(folder / file, rank) for file, rank in zip(names, (3, 1, 3, 1), strict=True)
    )
    return Source(
        tuple(known.classes),
        train_images[:, None],
        train_labels.astype(np.int64),
        test_images[:, None],
        test_labels.astype(np.int64),
    )


def _packed_or_not(path: Path) -> Path | None:
    return next((file for file in (path, path.with_name(path.name + ".gz")) if file.is_file()), None)


def _read_idx(path: Path, rank: int) -> NDArray[np.uint8]:
    """An IDX file: two zero bytes, the type (8: unsigned byte), the rank, the sizes big-endian, the values."""
    file = _packed_or_not(path) or path
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        _, kind, axes = struct.unpack_from(">HBB", data)
        shape = struct.unpack_from(f">{axes}I", data, 4)
        values = np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise InputError(f"{file}: is not a whole IDX file ({error}); fetch it again") from error
    if (kind, axes) != (8, rank):
        raise InputError(f"{file}: holds IDX values of type {kind} along {axes} axes, not bytes (type 8) along {rank}; "
                         "fetch it again")  # fmt: skip
    return values


def _cifar(config: DatasetConfig, name: str, label_key: str) -> Source:
    from torchvision import datasets as published
    from torchvision.datasets.utils import download_and_extract_archive

    known, root = getattr(published, name), _root(config)
    folder = root / known.base_folder
    if config.download and not folder.is_dir():
        # Not by constructing torchvision's class, which would unpickle what it finds.
        _download(config, lambda: download_and_extract_archive(known.url, root, None, known.filename, known.tgz_md5))
    if not folder.is_dir():
        raise _missing(config, f"{known.base_folder}/")
    images, labels = {}, {}
    for split, files in (("train", known.train_list), ("test", known.test_list)):
        batches = [_cifar_batch(folder / file, label_key) for file, _ in files]
        images[split] = np.concatenate([pixels for pixels, _ in batches])
        labels[split] = np.concatenate([truth for _, truth in batches])
    classes = _cifar_classes(folder / known.meta["filename"], known.meta["key"])
    return Source(classes, images["train"], labels["train"], images["test"], labels["test"])


_NUMPYS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class _Described:
    """An array, or its type, as a pickle describes it. numpy itself trusts any description, and crashes with some."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def array(self) -> NDArray[np.uint8]:
        _, shape, kind, is_by_columns, values = self.state
        if kind.arguments[0] != "u1":
            raise ValueError(f"an array of {kind.arguments[0]}, not of bytes")
        content = values if isinstance(values, bytes) else values.encode("latin1")
        return np.frombuffer(content, np.uint8).reshape(shape, order="F" if is_by_columns else "C")


class _PlainUnpickler(pickle.Unpickler):
    """Builds numbers, strings, lists, dicts and descriptions of arrays, and refuses all else a pickle could call."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NUMPYS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _Described


def _cifar_batch(path: Path, label_key: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    with _broken_is_refused(path):
        batch = _unpickled(path)
        return batch["data"].array().reshape(-1, 3, 32, 32), np.asarray(batch[label_key], np.int64).reshape(-1)


def _cifar_classes(path: Path, key: str) -> tuple[str, ...]:
    with _broken_is_refused(path):
        return tuple(map(str, _unpickled(path)[key]))


def _unpickled(path: Path) -> Any:
    return _PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()


@contextmanager
def _broken_is_refused(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, pickle.UnpicklingError, ValueError, TypeError, LookupError, AttributeError,
            ArithmeticError, MemoryError) as error:  # fmt: skip
        # All of these are what unpickling and using nonsense may raise.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{path}: is not a whole CIFAR batch file ({reason}); fetch it again") from error


def _root(config: DatasetConfig) -> Path:
    return Path(config.root or "data").expanduser().absolute()


def _missing(config: DatasetConfig, what: str, hint: str = "") -> InputError:
    return InputError(
        f"dataset {config.name}: found no {what} in {_root(config)}; set dataset.root to the folder that holds it"
        f", or dataset.download to true{hint}"
    )


def _download(config: DatasetConfig, fetch: Callable[[], object]) -> None:
    try:
        fetch()
    except (OSError, RuntimeError, URLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"dataset {config.name}: could not be downloaded to {_root(config)} ({reason}); "
            "put its files there yourself or set dataset.root to the folder that holds them"
        ) from error
