"""From a dataset to what a network sees: batches on the training device, augmented in training, normalised always.

Images that fit into memory move to the device once, as uint8; everything else happens there. Of images that stay in
their files some batches are decoded ahead, by threads, while the device computes.
"""

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scl_ray.augment import Augmentation, Draws, apply, boxes, draw, sent
from scl_ray.datasets import Dataset
from scl_ray.datasets.files import AT_ONCE, ImageFiles, threads

EVALUATED_AT_ONCE = 256
AHEAD = 2  # batches that are decoded while one is computed with

T = TypeVar("T")


class Pixels:
    """Pixels in [0, 1] to what the network sees, by the training split's mean and standard deviation."""

    def __init__(self, dataset: Dataset, device: torch.device) -> None:
        self.mean = torch.tensor(dataset.mean, device=device).view(-1, 1, 1)
        self.std = torch.tensor(dataset.std, device=device).view(-1, 1, 1)

    def normalised(self, images: Tensor) -> Tensor:
        # Channels last: convolutions and batch-norm run about 1.5 times as fast on a CPU.
        return images.sub(self.mean).div_(self.std).contiguous(memory_format=torch.channels_last)


class Feed:
    """The training split in random batches of *batch_size* images (all of them, if they are fewer), each in *views*
    random versions.

    Of *workers* that train one network together, each has a feed of its own *rank*, with its share of every batch; the
    shares of all are what a single worker sees, drawn alike. Raises ValueError when a batch cannot be shared equally.
    """

    def __init__(
        self,
        dataset: Dataset,
        device: torch.device,
        *,
        batch_size: int,
        views: int,
        augmentation: Augmentation,
        rank: int = 0,
        workers: int = 1,
    ) -> None:
        images = dataset.train_images
        self.images = images if isinstance(images, ImageFiles) else on_device(images, device)
        self.labels = on_device(dataset.train_labels, device)
        self.pixels = Pixels(dataset, device)
        self.batch_size = min(batch_size, len(self.labels))
        self.steps = len(self.labels) // self.batch_size
        self.views, self.augmentation = views, augmentation
        self.is_cut = isinstance(images, ImageFiles) and images.is_cut_when_read and augmentation.area != (1.0, 1.0)
        if self.batch_size % workers:
            raise ValueError(f"a batch of {self.batch_size} images cannot be shared equally by {workers} workers")
        self.share = torch.arange(self.batch_size).chunk(workers)[rank]

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images (V·n, 3, S, S) of V views of n images, view after view, and their labels (V·n,).

        n is the batch size divided by the number of workers. *generator*, on the CPU, decides order and augmentation,
        whatever the device. What does not fill a batch is left out. Raises InputError for a file that cannot be read.
        """
        for rows, draws, images in self._gathered(self._drawn(generator)):
            views = apply(images.float().div_(255), draws, is_cropped=self.is_cut)
            yield self.pixels.normalised(views), self.labels[sent(rows.repeat(self.views), self.labels.device)]

    def _drawn(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Draws]]:
        """This worker's images (n,) of each batch, and what is random about their V views."""
        order = torch.randperm(len(self.labels), generator=generator)
        rows = torch.cat([view * self.batch_size + self.share for view in range(self.views)])
        for batch in order[: self.steps * self.batch_size].split(self.batch_size):
            yield batch[self.share], draw(self.augmentation, self.views * self.batch_size, generator).of(rows)

    def _gathered(self, batches: Iterator[tuple[Tensor, Draws]]) -> Iterator[tuple[Tensor, Draws, Tensor]]:
        """Batches with their uint8 images (V·n, 3, S, S) on the device."""
        if isinstance(self.images, ImageFiles):
            parts = partial(_parts, views=self.views) if self.is_cut else None
            yield from _ahead(self.images, batches, self.views, self.labels.device, parts)
        else:
            for rows, draws in batches:
                yield rows, draws, self.images[sent(rows.repeat(self.views), self.images.device)]


def in_order(images: NDArray[Any] | ImageFiles, pixels: Pixels, device: torch.device) -> Iterator[Tensor]:
    """All of uint8 *images* (N, 3, S, S), normalised, not augmented, some hundreds at a time."""
    if isinstance(images, ImageFiles):
        numbers = torch.arange(len(images)).split(EVALUATED_AT_ONCE)
        batches = (batch for _, _, batch in _ahead(images, ((rows, None) for rows in numbers), 1, device))
    else:
        firsts = range(0, len(images), EVALUATED_AT_ONCE)
        batches = (on_device(images[first : first + EVALUATED_AT_ONCE], device) for first in firsts)
    for batch in batches:
        yield pixels.normalised(batch.float().div_(255))


def _ahead(
    files: ImageFiles,
    batches: Iterable[tuple[Tensor, T]],
    views: int,
    device: torch.device,
    parts: Callable[[T, slice, NDArray[np.int64]], NDArray[np.int64]] | None = None,
) -> Iterator[tuple[Tensor, T, Tensor]]:
    """Each of *batches*, which are n images and something said of them, with its uint8 images (V·n, 3, S, S).

    The images are whole, or else the *parts* of them that this function gives as `files.Boxes` does, from what is said
    of the batch, and of which of its images. A few batches are read ahead. Whoever leaves early leaves no thread.
    """
    pool, under_way = ThreadPoolExecutor(threads(), "decode"), deque[tuple[Tensor, T, Tensor, list[Future[None]]]]()

    def finished() -> tuple[Tensor, T, Tensor]:
        rows, said, pixels, reading = under_way.popleft()
        for span in reading:
            span.result()
        return rows, said, pixels.flatten(0, 1).to(device, non_blocking=True).permute(0, 3, 1, 2)

    try:
        for rows, said in batches:
            pixels = torch.empty(
                (views, len(rows), files.side, files.side, 3), dtype=torch.uint8, pin_memory=device.type == "cuda"
            )
            reading = []
            for first in range(0, len(rows), AT_ONCE):
                span = slice(first, first + AT_ONCE)
                chosen, into = rows[span].numpy(), pixels.numpy()[:, span]
                if parts is None:
                    reading.append(pool.submit(files.decode, chosen, into))
                else:
                    reading.append(pool.submit(files.decode_parts, chosen, partial(parts, said, span), into))
            under_way.append((rows, said, pixels, reading))
            if len(under_way) > AHEAD:
                yield finished()
        while under_way:
            yield finished()
    finally:
        pool.shutdown(cancel_futures=True)


def _parts(draws: Draws, span: slice, sizes: NDArray[np.int64], *, views: int) -> NDArray[np.int64]:
    """What the resized crops of *draws*, of V views of n images, keep of those of *span*: `files.Boxes`."""
    rows = torch.arange(len(draws.flip)).view(views, -1)[:, span].flatten()
    cut = boxes(draws.of(rows), torch.from_numpy(sizes).repeat(views, 1))
    return cut.view(views, -1, 4).numpy()


def on_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """*array* on *device*, without a copy where it is there already."""
    with warnings.catch_warnings():
        # Ray's shared memory is read-only, and so is the use made of it here.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array).to(device)
