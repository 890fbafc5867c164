"""Grad-CAM averaged over mirrored, darker and brighter versions of the image (test-time augmentation)."""

import torch
from torch import Tensor

from scl_ray.attribution.cam import grad_cam
from scl_ray.attribution.method import Method
from scl_ray.attribution.passes import backward, forward
from scl_ray.attribution.question import Question

BRIGHTNESS = (0.9, 1.0, 1.1)


def augmented_grad_cam(question: Question, spec: str, *, protocol: str) -> Tensor:
    """The mean of `grad_cam`'s maps of six versions of the image: mirrored or not, times 0.9, 1 and 1.1; (N,H,W) in
    [0,1]. Maps of mirrored images are mirrored back.

    ``published`` multiplies the normalised image, as grad-cam's ``aug_smooth`` does; ``corrected`` multiplies its
    pixels and clamps them to [0,1].

    Gildenblat et al., PyTorch library for CAM methods (grad-cam), 2021; Arrighi et al., arXiv 2604.22540, 2026, score
    its maps against segmentation masks.
    """
    batch = question.batch
    total = torch.zeros_like(batch.images[:, 0])
    for factor in BRIGHTNESS:
        if protocol == "published":
            images = factor * batch.images
        else:
            images = batch.from_pixels((factor * batch.to_pixels(batch.images)).clamp(0, 1))
        for mirrored in (False, True):
            passed = forward(question.network, images.flip(-1) if mirrored else images, question.layer)
            maps = grad_cam(passed, backward(passed, question.weights), protocol=protocol)
            total += maps.flip(-1) if mirrored else maps
    return total / (2 * len(BRIGHTNESS))


METHODS = {
    "augmented_grad_cam": Method(
        augmented_grad_cam,
        class_discriminative=True,
        citation="Gildenblat et al., grad-cam, 2021",
        cost=lambda parameters, image_size: 2 * len(BRIGHTNESS),
    ),
}
