"""Datasets in their original formats, real where the machine has them."""

import gzip
import io
import pickle
import struct
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from hashlib import md5
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets as published
from refusal import refused
from sklearn.datasets import load_digits
from torch.nn import functional

from scl_ray import datasets
from scl_ray.config import DatasetConfig

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture
def served(tmp_path) -> Iterator[str]:
    """The address at which *tmp_path* can be downloaded from."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class TestDigits:
    def test_every_image_is_in_exactly_one_split(self):
        dataset = datasets.load(DatasetConfig(name="digits", image_size=8))
        images = np.concatenate([dataset.train_images, dataset.validation_images, dataset.test_images])
        labels = np.concatenate([dataset.train_labels, dataset.validation_labels, dataset.test_labels])
        raw, truth = load_digits(return_X_y=True)
        found = sorted((int(y), x[0].tobytes()) for x, y in zip(images, labels, strict=True))
        expected = np.round(raw.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
        assert found == sorted((int(y), x.tobytes()) for x, y in zip(expected, truth, strict=True))
        assert len(dataset.test_labels) == 360
        assert np.ptp(np.bincount(dataset.test_labels)) <= 2

    def test_images_are_resized_with_antialiasing_and_stay_bytes(self):
        dataset = datasets.load(DatasetConfig(name="digits"))
        assert dataset.test_images.shape == (360, 3, 32, 32)
        assert dataset.test_images.dtype == np.uint8
        assert dataset.image_size == 32
        small = datasets.load(DatasetConfig(name="digits", image_size=8)).test_images
        expected = functional.interpolate(torch.tensor(small), (32, 32), mode="bilinear", antialias=True)
        assert np.array_equal(dataset.test_images, expected.numpy())

    def test_mean_and_std_are_those_of_the_training_split(self):
        dataset = datasets.load(DatasetConfig(name="digits"))
        pixels = dataset.train_images / 255
        assert dataset.mean == pytest.approx(pixels.mean(axis=(0, 2, 3)), abs=1e-12)
        assert dataset.std == pytest.approx(pixels.std(axis=(0, 2, 3)), abs=1e-12)

    def test_fingerprint_is_of_the_content_alone(self):
        configs = [
            DatasetConfig(name="digits"),
            DatasetConfig(name="digits", image_size=16, validation=0.2, root="/elsewhere"),
        ]
        loaded = {datasets.load(config).fingerprint for config in configs}
        assert loaded == {datasets.fingerprint(config) for config in configs}
        assert len(loaded) == 1

    def test_validation_split_has_the_fraction_asked_for_and_is_stratified(self):
        dataset = datasets.load(DatasetConfig(name="digits", validation=0.2))
        assert len(dataset.validation_labels) == round(0.2 * 1437)
        assert np.ptp(np.bincount(dataset.validation_labels)) <= 2

    def test_what_is_known_without_the_data_is_true(self):
        info, dataset = datasets.INFO["digits"], datasets.load(DatasetConfig(name="digits"))
        assert info.classes == len(dataset.classes)
        assert info.image_size == dataset.image_size
        assert info.test_images == len(dataset.test_labels)
        assert info.train_images == len(dataset.train_labels) + len(dataset.validation_labels)


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings: CIFAR's files are that old."""

    def save_python2_string(self, value):
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)

    dispatch = pickle._Pickler.dispatch | {bytes: save_python2_string}


def python2_pickle(value) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def write_cifar(root: Path, known: type[published.CIFAR10], label_key: bytes, classes: int) -> dict[str, np.ndarray]:
    """CIFAR's files with few images; returns the images by file."""
    folder = root / known.base_folder
    folder.mkdir(parents=True)
    random, images = np.random.RandomState(0), {}
    for name, _ in known.train_list + known.test_list:
        count = 3 * classes
        images[name] = random.randint(0, 256, (count, 3072)).astype(np.uint8)
        labels = [int(label) for label in np.arange(count) % classes]
        batch = {b"data": images[name], label_key: labels, b"batch_label": b"some batch"}
        (folder / name).write_bytes(python2_pickle(batch))
    names = [f"class {number}".encode() for number in range(classes)]
    (folder / known.meta["filename"]).write_bytes(python2_pickle({known.meta["key"].encode(): names}))
    return images


class TestCifar:
    @pytest.mark.parametrize(
        ("name", "known", "key", "classes"),
        [("cifar10", published.CIFAR10, b"labels", 10), ("cifar100", published.CIFAR100, b"fine_labels", 100)],
    )
    def test_reads_the_published_format(self, tmp_path, name, known, key, classes):
        written = write_cifar(tmp_path, known, key, classes)
        dataset = datasets.load(DatasetConfig(name=name, root=str(tmp_path)))
        test = written[known.test_list[0][0]].reshape(-1, 3, 32, 32)
        assert np.array_equal(dataset.test_images, test)
        assert np.array_equal(dataset.test_labels, np.arange(3 * classes) % classes)
        assert dataset.classes[:2] == ("class 0", "class 1")
        assert len(dataset.train_labels) + len(dataset.validation_labels) == 3 * classes * len(known.train_list)

    def test_the_written_files_are_what_torchvision_reads(self, tmp_path, monkeypatch):
        write_cifar(tmp_path, published.CIFAR10, b"labels", 10)
        monkeypatch.setattr(published.CIFAR10, "_check_integrity", lambda self: True)
        monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: True)
        theirs = published.CIFAR10(tmp_path, train=False)
        ours = datasets.load(DatasetConfig(name="cifar10", root=str(tmp_path)))
        assert np.array_equal(theirs.data.transpose(0, 3, 1, 2), ours.test_images)
        assert theirs.classes == list(ours.classes)

    def test_a_pickle_that_calls_something_is_refused(self, tmp_path):
        write_cifar(tmp_path, published.CIFAR10, b"labels", 10)
        victim = tmp_path / "victim"

        class Attack:
            def __reduce__(self):
                return victim.touch, ()

        file = tmp_path / published.CIFAR10.base_folder / "data_batch_3"
        file.write_bytes(pickle.dumps({"data": Attack(), "labels": []}))
        message = refused(DatasetConfig(name="cifar10", root=str(tmp_path)))
        assert str(file) in message
        assert not victim.exists()

    @pytest.mark.parametrize(
        ("written", "broken"),
        [
            (b"X\2\0\0\0u1", b"X\2\0\0\0O8"),  # objects: numpy would take the pixels for their addresses
            (b"X\2\0\0\0u1", b"X\2\0\0\0f8"),
            (b"K\x1eM\0\x0c", b"K\x1fM\0\x0c"),  # the shape: 31 images, of which 30 are there
            (b"T\6\0\0\0labels", b"T\6\0\0\0labell"),
        ],
    )
    def test_an_array_that_is_not_what_it_says_is_refused(self, tmp_path, written, broken):
        write_cifar(tmp_path, published.CIFAR10, b"labels", 10)
        file = tmp_path / published.CIFAR10.base_folder / "data_batch_2"
        content = file.read_bytes()
        assert content.count(written) == 1
        file.write_bytes(content.replace(written, broken))
        message = refused(DatasetConfig(name="cifar10", root=str(tmp_path)))
        assert f"{file}: is not a whole CIFAR batch file" in message

    @pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps([1]), pickle.dumps({"data": 1})])
    def test_a_broken_file_is_named(self, tmp_path, content):
        write_cifar(tmp_path, published.CIFAR10, b"labels", 10)
        file = tmp_path / published.CIFAR10.base_folder / "test_batch"
        file.write_bytes(content)
        assert str(file) in refused(DatasetConfig(name="cifar10", root=str(tmp_path)))

    def test_download_unpacks_the_archive(self, tmp_path, monkeypatch, served):
        write_cifar(tmp_path / "source", published.CIFAR10, b"labels", 10)
        archive = tmp_path / "cifar-10-python.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(tmp_path / "source" / published.CIFAR10.base_folder, published.CIFAR10.base_folder)
        monkeypatch.setattr(published.CIFAR10, "url", f"{served}/{archive.name}")
        monkeypatch.setattr(published.CIFAR10, "tgz_md5", md5(archive.read_bytes()).hexdigest())
        dataset = datasets.load(DatasetConfig(name="cifar10", root=str(tmp_path / "data"), download=True))
        assert dataset.test_images.shape == (30, 3, 32, 32)

    def test_a_download_that_fails_says_so(self, tmp_path, monkeypatch, served):
        monkeypatch.setattr(published.CIFAR10, "url", f"{served}/nothing.tar.gz")
        message = refused(DatasetConfig(name="cifar10", root=str(tmp_path / "data"), download=True))
        assert "could not be downloaded" in message
        assert str(tmp_path / "data") in message


def write_idx(path: Path, values: np.ndarray) -> None:
    data = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_mnist(folder: Path, suffix: str) -> dict[str, np.ndarray]:
    random = np.random.RandomState(0)
    files = {}
    for split, count in (("train", 200), ("t10k", 50)):
        files[f"{split}-images-idx3-ubyte"] = random.randint(0, 256, (count, 28, 28)).astype(np.uint8)
        files[f"{split}-labels-idx1-ubyte"] = (np.arange(count) % 10).astype(np.uint8)
    for name, values in files.items():
        write_idx(folder / f"{name}{suffix}", values)
    return files


class TestIdx:
    @pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST/raw"), ("fashion_mnist", "FashionMNIST/raw")])
    @pytest.mark.parametrize("suffix", ["", ".gz"])
    def test_reads_torchvisions_folder(self, tmp_path, name, folder, suffix):
        written = write_mnist(tmp_path / folder, suffix)
        dataset = datasets.load(DatasetConfig(name=name, root=str(tmp_path)))
        assert dataset.test_images.shape == (50, 3, 28, 28)
        assert np.array_equal(dataset.test_images[:, 1], written["t10k-images-idx3-ubyte"])
        assert np.array_equal(dataset.test_labels, written["t10k-labels-idx1-ubyte"])
        assert dataset.mean[0] == dataset.mean[2]

    def test_packed_and_unpacked_files_are_the_same_dataset(self, tmp_path):
        write_mnist(tmp_path / "a" / "MNIST" / "raw", "")
        write_mnist(tmp_path / "b", ".gz")
        a, b = (datasets.fingerprint(DatasetConfig(name="mnist", root=str(tmp_path / place))) for place in "ab")
        assert a == b

    def test_a_cut_file_is_named(self, tmp_path):
        write_mnist(tmp_path, "")
        file = tmp_path / "t10k-images-idx3-ubyte"
        file.write_bytes(file.read_bytes()[:-1])
        assert str(file) in refused(DatasetConfig(name="mnist", root=str(tmp_path)))

    def test_a_packed_file_with_a_wrong_byte_is_named(self, tmp_path):
        write_mnist(tmp_path, ".gz")
        file = tmp_path / "train-images-idx3-ubyte.gz"
        content = bytearray(file.read_bytes())
        content[1000:1100] = bytes(100)
        file.write_bytes(content)
        assert str(file) in refused(DatasetConfig(name="mnist", root=str(tmp_path)))

    def test_files_of_something_else_are_refused(self, tmp_path):
        files = write_mnist(tmp_path, "")
        config = DatasetConfig(name="mnist", root=str(tmp_path))
        images, labels = tmp_path / "t10k-images-idx3-ubyte", tmp_path / "t10k-labels-idx1-ubyte"
        write_idx(labels, files[labels.name] + 1)
        assert "has the label 10, which is none of its 10 classes" in refused(config)
        write_idx(images, files[labels.name])
        assert f"{images}: holds IDX values of type 8 along 1 axes" in refused(config)

    def test_download_fetches_the_published_files(self, tmp_path, monkeypatch, served):
        write_mnist(tmp_path / "mirror", ".gz")
        resources = [(n, md5((tmp_path / "mirror" / n).read_bytes()).hexdigest()) for n, _ in published.MNIST.resources]
        monkeypatch.setattr(published.MNIST, "mirrors", [f"{served}/mirror/"])
        monkeypatch.setattr(published.MNIST, "resources", resources)
        dataset = datasets.load(DatasetConfig(name="mnist", root=str(tmp_path / "data"), download=True))
        assert len(dataset.test_labels) == 50

    @pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed")
    def test_fashion_mnist_as_published(self):
        dataset = datasets.load(DatasetConfig(name="fashion_mnist", root=str(FASHION_MNIST)))
        info = datasets.INFO["fashion_mnist"]
        assert dataset.test_images.shape == (info.test_images, 3, info.image_size, info.image_size)
        assert len(dataset.train_labels) + len(dataset.validation_labels) == info.train_images
        assert dataset.classes[9] == "Ankle boot"
        assert dataset.mean[0] == pytest.approx(0.2860, abs=5e-4)
        assert dataset.std[0] == pytest.approx(0.3530, abs=5e-4)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_a_missing_dataset_is_one_sentence_with_place_and_fix(tmp_path, monkeypatch, name):
    message = refused(DatasetConfig(name=name, root=str(tmp_path)))
    assert name in message
    assert str(tmp_path) in message
    assert "dataset.download" in message
    monkeypatch.chdir(tmp_path)
    assert str(tmp_path / "data") in refused(DatasetConfig(name=name))
