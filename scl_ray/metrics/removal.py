"""Taking parts of the images away in order, and what the network says after each step.

The copies of all images, steps and methods pass the network together, `Batch.at_once` at a time, so their number does
not decide the memory. They are built in channels-last memory, in which convolutions read them.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scl_ray.attribution import Batch

BLUR_WINDOW, BLUR_DEVIATION = 11, 5.0


class Answers(NamedTuple):
    """What the network says of each image after each step; all (N,steps) float32, nan beyond an image's last step.

    calibrated: softmax probability of the class explained, by the model's own scores.
    raw: the same before the model's temperature divided its scores.
    kept: 1 where the class explained is still the predicted one.
    """

    calibrated: Tensor
    raw: Tensor
    kept: Tensor


def of_images(batch: Batch) -> Answers:
    """The answers (N,1) for the images as they are: from the forward pass that is there, or from one of their own.

    In float32 at any precision, so that both give the same.
    """
    passed = batch.passed.get("class_score")
    scores = batch.scores(batch.images) if passed is None else passed.scores.detach()
    return Answers(*(answer[:, None] for answer in _read(batch, scores, batch.targets)))


def replace_in_order(
    batch: Batch,
    replaced_at: Mapping[str, Tensor],
    steps: int | Tensor,
    before: Tensor,
    after: Tensor,
    precision: str,
) -> dict[str, Answers]:
    """The answers while pixels of *before* become those of *after*, both (N,C,H,W) or a scalar an image (N,1,1,1).

    replaced_at: for each method the step (N,H*W) from 0 that replaces a pixel of all channels. steps: how many, of all
    images or of each (N,).
    """
    shape = batch.images.shape
    # The values of a pixel lie side by side, and each has its own step: selecting runs over contiguous memory only.
    at = torch.cat(list(replaced_at.values())).int()[..., None].expand(-1, -1, shape[1]).flatten(1)
    start, end = _channels_last(before, shape), _channels_last(after, shape)

    def copies(rows: Tensor, images: Tensor, step: Tensor) -> Tensor:
        replaced = at.index_select(0, rows) <= step.int()[:, None]
        return torch.where(replaced, end.index_select(0, images), start.index_select(0, images))

    return answers(batch, list(replaced_at), steps, copies, precision)


def answers(
    batch: Batch,
    methods: list[str],
    steps: int | Tensor,
    copies: Callable[[Tensor, Tensor, Tensor], Tensor],
    precision: str,
) -> dict[str, Answers]:
    """The answers of the network along the *steps*, so many of all images or of each (N,), for each of *methods*.

    copies: ``copies(rows, images, step)`` gives the changed images (M,H*W*C), channels last, of the image positions
      *images*, at *step*; the rows count on through the methods: image n of method m is row m*N + n. All (M,) int64.
    """
    number, channels, height, width = batch.images.shape
    device = batch.images.device
    lengths = torch.as_tensor(steps, device=device).expand(number).repeat(len(methods))
    ends = lengths.cumsum(0)
    row = torch.arange(len(lengths), device=device).repeat_interleave(lengths)
    step = torch.arange(len(row), device=device) - (ends - lengths)[row]
    found = []
    for rows, at in zip(row.split(batch.at_once), step.split(batch.at_once), strict=True):
        images = rows % number
        changed = copies(rows, images, at).view(-1, height, width, channels).permute(0, 3, 1, 2)
        found.append(_read(batch, batch.scores(changed, precision), batch.targets[images]))
    longest = int(lengths.max())
    filled = []
    for parts in zip(*found, strict=True):
        table = torch.full((len(lengths), longest), torch.nan, device=device)
        table[row, step] = torch.cat(parts)
        filled.append(table.split(number))
    return {method: Answers(*parts) for method, *parts in zip(methods, *filled, strict=True)}


def joined(first: Answers, second: Answers) -> Answers:
    """The answers of *first*, then those of *second*."""
    return Answers(*(torch.cat(pair, 1) for pair in zip(first, second, strict=True)))


def _read(batch: Batch, scores: Tensor, targets: Tensor) -> Answers:
    """The answers (M,) that *scores* (M,K) hold for the classes *targets* (M,)."""
    temperature = float(getattr(batch.model, "temperature", 1.0))
    calibrated = raw = scores.softmax(1).gather(1, targets[:, None])[:, 0]
    if temperature != 1:
        raw = (scores * temperature).softmax(1).gather(1, targets[:, None])[:, 0]
    return Answers(calibrated, raw, (scores.argmax(1) == targets).float())


def _channels_last(images: Tensor, shape: torch.Size) -> Tensor:
    """Images (N,C,H,W) as rows (N,H*W*C); a scalar an image as (N,1)."""
    if images.shape[1:].numel() == 1:
        return images.reshape(-1, 1)
    return images.expand(shape).permute(0, 2, 3, 1).flatten(1)


def _blurred(batch: Batch) -> Tensor:
    """The images under the blur of Petsiuk et al.'s code: a Gaussian of 5 pixels in a window of 11, whose tails are
    folded back into the window; zero, the mean image, lies beyond the border.
    """
    from scipy.ndimage import gaussian_filter1d  # here, since it takes a while to import

    impulse = torch.zeros(BLUR_WINDOW, dtype=torch.float64)
    impulse[BLUR_WINDOW // 2] = 1
    weights = torch.from_numpy(gaussian_filter1d(impulse.numpy(), BLUR_DEVIATION, mode="reflect")).to(batch.images)
    planes = batch.images.flatten(0, 1)[:, None]
    planes = F.conv2d(planes, weights.view(1, 1, -1, 1), padding=(BLUR_WINDOW // 2, 0))
    planes = F.conv2d(planes, weights.view(1, 1, 1, -1), padding=(0, BLUR_WINDOW // 2))
    return planes.view_as(batch.images)


def _uniform(batch: Batch) -> Tensor:
    """Independent values (N,C,H,W), uniform between the minimum and the maximum of each image; the same for all specs,
    so that methods and metrics meet the same noise.
    """
    shape = batch.images.shape[1:]
    drawn = [stream.random(shape, dtype=np.float32) for stream in batch.generators("uniform baseline")]
    low, high = batch.images.amin((1, 2, 3), keepdim=True), batch.images.amax((1, 2, 3), keepdim=True)
    return low + (high - low) * torch.from_numpy(np.stack(drawn)).to(low.device)


# What takes the place of removed pixels, in the normalised space: a scalar an image (N,1,1,1), or an image (N,C,H,W).
BASELINES: dict[str, Callable[[Batch], Tensor]] = {
    "minimum": lambda batch: batch.images.amin((1, 2, 3), keepdim=True),
    "mean": lambda batch: batch.images.mean((1, 2, 3), keepdim=True),
    "zero": lambda batch: batch.images.new_zeros(len(batch.images), 1, 1, 1),
    "blur": _blurred,
    "uniform": _uniform,
}
