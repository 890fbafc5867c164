"""Controls: maps that look like explanations and know nothing of the network."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scl_ray.attribution.method import Method
from scl_ray.attribution.question import Question
from scl_ray.attribution.registry import PROTOCOL


def random(question: Question, spec: str, *, protocol: str) -> Tensor:
    """Uniform noise, drawn for each image and protocol; (N,H,W) in [0,1).

    Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018.
    """
    size = question.images.shape[-2:]
    drawn = np.stack([stream.random(size, np.float32) for stream in question.batch.generators(spec)])
    return torch.from_numpy(drawn).to(question.images.device)


def edge(question: Question, spec: str, *, protocol: str) -> Tensor:
    """Magnitude of the Sobel gradient of the grey image, the mean over the channels in pixel space; (N,H,W), at least
    0. The image goes on beyond its border as it ends there. Both protocols agree.

    Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018, appendix.
    """
    grey = question.batch.to_pixels(question.images).mean(1, keepdim=True)
    across = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]], device=grey.device) / 4
    slopes = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), torch.stack([across, across.T])[:, None])
    return slopes.square().mean(1).sqrt()


def constant(question: Question, spec: str, *, protocol: str) -> Tensor:
    """One everywhere, (N,H,W): no pixel is more important than another, so metrics that rank it are undefined."""
    return torch.ones_like(question.images[:, 0])


METHODS = {
    name: Method(function, class_discriminative=False, parameters={"protocol": PROTOCOL}, citation=citation)
    for name, function, citation in [
        ("random", random, "after Adebayo et al., NeurIPS 2018"),
        ("edge", edge, "after Adebayo et al., NeurIPS 2018"),
        ("constant", constant, "a control"),
    ]
}
