"""What a network sees: from memory and from files, alone and among workers, whatever reads and whenever one leaves."""

import dataclasses
import threading

import numpy as np
import pytest
import small_imagenet_s50 as small
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from scl_ray import datasets, evaluation, feed
from scl_ray.augment import AUGMENTATIONS, Augmentation, apply, boxes, draw
from scl_ray.config import Cell, DatasetConfig, InputError, Trial
from scl_ray.datasets import Dataset
from scl_ray.datasets.files import AT_ONCE
from scl_ray.finishing import finish
from scl_ray.training import fit

SIZE = 32
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Images that stay in their files."""
    root = tmp_path_factory.mktemp("imagenet_s50")
    small.write(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        return datasets.load(DatasetConfig(name="imagenet_s50", root=str(root), image_size=SIZE))


@pytest.fixture(scope="module")
def in_memory(photographs: Dataset) -> Dataset:
    return dataclasses.replace(photographs, train_images=np.ascontiguousarray(photographs.train_images[:]))


def epoch(dataset: Dataset, augmentation: str, **settings: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    settings = {"batch_size": 24, "views": 2} | settings
    fed = feed.Feed(dataset, CPU, augmentation=AUGMENTATIONS[augmentation], **settings)
    return list(fed.epoch(torch.Generator().manual_seed(1)))


def same(one: list[tuple[torch.Tensor, torch.Tensor]], other: list[tuple[torch.Tensor, torch.Tensor]]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a, b) for batch, again in pairs for a, b in zip(batch, again, strict=True))


def pixels(dataset: Dataset, images: torch.Tensor) -> torch.Tensor:
    """What was normalised, in [0, 1]."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (dataset.mean, dataset.std))
    return images * std + mean


def decoding() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("decode")]


@pytest.mark.parametrize("augmentation", ["none", "crop_flip"])
def test_images_in_files_are_fed_as_those_in_memory_where_no_crop_is_resized(photographs, in_memory, augmentation):
    assert same(epoch(photographs, augmentation), epoch(in_memory, augmentation))


def test_an_epoch_shows_every_image_once_with_its_label_in_every_view(photographs):
    batches = epoch(photographs, "none", batch_size=29, views=3)
    assert [len(labels) for _, labels in batches] == [3 * 29] * 2
    seen = torch.cat([images.unflatten(0, (3, 29))[0] for images, _ in batches])
    labels = torch.cat([labels.unflatten(0, (3, 29))[0] for _, labels in batches])
    whole = torch.cat(list(feed.in_order(photographs.train_images, feed.Pixels(photographs, CPU), CPU)))
    # Each of the 58 is found where its pixels are; no two images are equal.
    found = [int((whole == image).flatten(1).all(1).nonzero()) for image in seen]
    assert sorted(found) == list(range(58))
    assert np.array_equal(labels, photographs.train_labels[found])
    for images, own in batches:
        assert all(torch.equal(images[:29], view) for view in images.split(29))
        assert all(torch.equal(own[:29], view) for view in own.split(29))


def test_resized_crops_are_cut_from_the_files_own_pixels(photographs):
    augmentation = AUGMENTATIONS["resized_crop_flip"]
    ((images, labels),) = epoch(photographs, "resized_crop_flip", batch_size=58, views=2)
    # What the feed draws, in the order in which it draws it.
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(58, generator=generator).repeat(2)
    draws = draw(augmentation, 116, generator)
    files = [photographs.files_root / photographs.train_images.names[index] for index in order]
    originals = [Image.open(path) for path in files]
    cuts = boxes(draws, torch.tensor([(picture.height, picture.width) for picture in originals]))
    for image, picture, box, flip in zip(pixels(photographs, images), originals, cuts, draws.flip, strict=True):
        expected = functional.pil_to_tensor(functional.resized_crop(picture, *box.tolist(), size=[SIZE, SIZE]))
        expected = expected.flip(2) if flip else expected
        # Bytes went through the mean, the standard deviation and back in float32.
        torch.testing.assert_close(image * 255, expected.float(), rtol=0, atol=1e-3)
    assert np.array_equal(labels, photographs.train_labels[order])


def test_colours_change_after_the_crop(photographs):
    """With the draws of one epoch, recolouring what "resized crop, flip" alone shows gives what the feed shows."""
    contrastive = AUGMENTATIONS["contrastive"]
    moved = Augmentation(area=contrastive.area, flip=True)

    def views(augmentation: Augmentation) -> torch.Tensor:
        fed = feed.Feed(photographs, CPU, batch_size=58, views=2, augmentation=augmentation)
        ((images, _),) = fed.epoch(torch.Generator().manual_seed(1))
        return pixels(photographs, images)

    generator = torch.Generator().manual_seed(1)
    torch.randperm(58, generator=generator)
    draws = draw(contrastive, 116, generator)
    expected = apply(views(moved), draws._replace(flip=torch.zeros(116, dtype=torch.bool)), is_cropped=True)
    # Normalising and back rounds to 1e-7, which a turned hue may enlarge.
    torch.testing.assert_close(views(contrastive), expected, rtol=0, atol=1e-4)


def test_what_is_fed_does_not_depend_on_how_many_threads_read(photographs, monkeypatch):
    alone = epoch(photographs, "contrastive")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert same(alone, epoch(photographs, "contrastive"))


@pytest.mark.parametrize("kind", ["files", "memory"])
def test_the_shares_of_workers_are_the_batch_of_one(photographs, in_memory, kind):
    dataset = photographs if kind == "files" else in_memory
    whole = epoch(dataset, "contrastive")
    shares = [epoch(dataset, "contrastive", rank=rank, workers=3) for rank in range(3)]
    for (images, labels), *parts in zip(whole, *shares, strict=True):
        assert [len(own) for _, own in parts] == [16] * 3
        joined = torch.cat([share.unflatten(0, (2, 8)) for share, _ in parts], dim=1).flatten(0, 1)
        assert torch.equal(torch.cat([own.unflatten(0, (2, 8)) for _, own in parts], dim=1).flatten(0, 1), labels)
        # Products of matrices of other sizes are summed in another order.
        torch.testing.assert_close(joined, images, rtol=0, atol=1e-5)


def test_a_batch_that_workers_cannot_share_is_refused(photographs):
    with pytest.raises(ValueError, match="a batch of 24 images cannot be shared equally by 5 workers"):
        epoch(photographs, "none", workers=5)


def test_a_generator_decides_order_and_augmentation(photographs):
    fed = feed.Feed(photographs, CPU, batch_size=16, views=1, augmentation=AUGMENTATIONS["contrastive"])
    one, again, other = (list(fed.epoch(torch.Generator().manual_seed(seed))) for seed in (1, 1, 2))
    assert same(one, again)
    assert not same(one, other)


def test_images_in_order_are_normalised_and_all_there(photographs, monkeypatch):
    monkeypatch.setattr(feed, "EVALUATED_AT_ONCE", AT_ONCE + 3)
    given = feed.Pixels(photographs, CPU)
    batches = list(feed.in_order(photographs.train_images, given, CPU))
    assert [len(batch) for batch in batches] == [19, 19, 19, 1]
    expected = given.normalised(torch.tensor(photographs.train_images[:]).float() / 255)
    assert torch.equal(torch.cat(batches), expected)
    assert torch.equal(torch.cat(list(feed.in_order(photographs.train_images[:], given, CPU))), expected)


def test_whoever_leaves_early_leaves_no_thread(photographs):
    fed = feed.Feed(photographs, CPU, batch_size=2, views=2, augmentation=AUGMENTATIONS["contrastive"])
    batches = fed.epoch(torch.Generator().manual_seed(1))
    next(batches)
    assert decoding()
    batches.close()
    assert not decoding()

    def fails_at_its_first_step() -> None:
        for _ in fed.epoch(torch.Generator().manual_seed(1)):
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fails_at_its_first_step()
    assert not decoding()


def test_a_file_that_cannot_be_read_ends_the_loop_by_its_name(photographs, tmp_path):
    images = photographs.train_images
    broken = tmp_path / "broken.JPEG"
    broken.write_bytes((images.root / images.names[0]).read_bytes()[:500])
    names = (*images.names[:40], str(broken), *images.names[41:])
    dataset = dataclasses.replace(photographs, train_images=dataclasses.replace(images, names=names))
    for augmentation in ("none", "contrastive"):
        with pytest.raises(InputError, match=r"broken\.JPEG: cannot be read as an image"):
            epoch(dataset, augmentation, batch_size=58)
    with pytest.raises(InputError, match=r"broken\.JPEG: cannot be read as an image"):
        list(feed.in_order(dataset.train_images, feed.Pixels(dataset, CPU), CPU))
    assert not decoding()


def test_reading_keeps_a_few_batches_ahead_and_no_more(photographs, monkeypatch):
    """However slow the network is, so that memory does not fill with what it has not seen."""
    read, decode = [], datasets.files.ImageFiles.decode
    monkeypatch.setattr(
        datasets.files.ImageFiles, "decode", lambda *given: (read.append(len(given[1])), decode(*given))[1]
    )
    fed = feed.Feed(photographs, CPU, batch_size=4, views=1, augmentation=AUGMENTATIONS["none"])
    batches = fed.epoch(torch.Generator().manual_seed(1))
    for _ in range(3):
        next(batches)
    batches.close()
    assert sum(read) <= 4 * (3 + feed.AHEAD)


@pytest.mark.parametrize(
    ("objective", "augmentation"),
    [("cross_entropy", "resized_crop_flip"), ({"name": "supcon", "temperature": 0.1}, "contrastive_blur")],
)
def test_a_trial_on_images_in_files_from_training_to_scores(photographs: Dataset, objective, augmentation) -> None:
    """Training, read-outs and coherence against the masks; and a network that learns four photographs' parts."""
    trial = Trial(
        dataset=DatasetConfig(name="imagenet_s50"),
        objective={"name": objective} if isinstance(objective, str) else objective,
        backbone="resnet8",
        seed=0,
        training={"epochs": 15, "batch_size": 29, "learning_rate": 0.05, "augmentation": augmentation},
    )
    *_, (_, state) = fit(photographs, trial)
    checkpoint, measures = finish(photographs, trial, state)
    # Chance is 0.25; three seeds of each reached 0.67 to 0.92.
    assert measures["accuracy/prototype"] >= 0.5
    cells = [Cell("grad_cam", metric) for metric in ("pointing_game", "attribution_localisation")]
    tables = evaluation.evaluate(checkpoint, photographs, 0, 11, cells)
    rows = tables.scores.to_pylist()
    assert len(rows) == 2 * 12
    assert {row["image"] for row in rows} == set(range(12))
    shares = [row["value"] for row in rows if row["metric"] == "attribution_localisation" and row["value"] is not None]
    assert shares
    assert all(0 <= share <= 1 for share in shares)
    assert len({round(share, 6) for share in shares}) > 1
    assert not decoding()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_is_fed_what_the_cpu_is(photographs):
    settings = {"batch_size": 24, "views": 2, "augmentation": AUGMENTATIONS["contrastive"]}
    fed = [feed.Feed(photographs, device, **settings) for device in (CPU, torch.device("cuda"))]
    for (images, labels), (others, theirs) in zip(
        *(one.epoch(torch.Generator().manual_seed(1)) for one in fed), strict=True
    ):
        assert torch.equal(labels, theirs.cpu())
        torch.testing.assert_close(images, others.cpu(), rtol=0, atol=1e-4)
