"""Changed copies of the images of a batch, run in passes of `Batch.at_once`, whatever the numbers of images and copies.

Copy k of image n is one pair (n,k); the pairs are walked image by image.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from scl_ray.attribution.batch import Batch
from scl_ray.attribution.question import Question


def in_passes(batch: Batch, copies: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Positions of the image and numbers of the copy, both (M,) int64, for each pass over *copies* of every image."""
    for pairs in torch.arange(len(batch.images) * copies, device=batch.images.device).split(batch.at_once):
        yield pairs // copies, pairs % copies


def scores(question: Question, images: Tensor, of: Tensor, precision: str = "float32") -> Tensor:
    """Scores (M,) of *images* (M,C,H,W), without a graph; image m is a copy of the batch's image of[m], *of* (M,)."""
    batch = question.batch
    if question.network is batch.model:
        outputs = batch.scores(images, precision)
    else:
        with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            outputs = torch.cat([question.network(part).float() for part in images.split(batch.at_once)])
    return (outputs * question.weights[of]).sum(1)


def masked_scores(
    question: Question, masks: Callable[[Tensor, Tensor], Tensor], copies: int, precision: str = "float32"
) -> Tensor:
    """Scores (N,copies) of the images times masks; *masks* makes those (M,H,W) of the pairs (M,) of `in_passes`."""
    found = []
    for image, copy in in_passes(question.batch, copies):
        masked = question.images[image] * masks(image, copy)[:, None]
        found.append(scores(question, masked, image, precision))
    return torch.cat(found).view(-1, copies)
