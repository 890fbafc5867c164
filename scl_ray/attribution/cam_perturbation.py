"""Class activation maps whose weights come from watching the score, without gradients.

As for all CAMs, a map is rectified, resized bilinearly to the image and scaled to [0,1].
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scl_ray.attribution.cam import feature_maps, finish
from scl_ray.attribution.copies import masked_scores
from scl_ray.attribution.method import Method
from scl_ray.attribution.passes import FULL_BATCH, forward
from scl_ray.attribution.question import Question
from scl_ray.attribution.registry import PRECISION, PROTOCOL, TARGET

# The cost is one pass a feature map, of which there are as many as the last block has: here ResNet-18's.
_FEATURE_MAPS = 512


def score_cam(question: Question, spec: str, *, precision: str, protocol: str) -> Tensor:
    """Feature maps weighted by the softmax, over the maps, of the score that the image has when it is seen through
    that map alone; (N,H,W) in [0,1]. Both protocols agree.

    The image is multiplied by the map, resized to it and scaled to [0,1]. The paper leaves open how to resize; corners
    are aligned, as in grad-cam. A constant map becomes zero, and the image seen through it the mean image.

    Wang et al., Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks, CVPR workshop 2020.
    """
    activations = _activations(question)[0]
    size = question.images.shape[-2:]

    def seen_through(image: Tensor, channel: Tensor) -> Tensor:
        maps = activations[image, channel][:, None]
        maps = F.interpolate(maps, size, mode="bilinear", align_corners=True)[:, 0]
        low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
        return (maps - low) / (high - low + 1e-8)

    scores = masked_scores(question, seen_through, activations.shape[1], precision)
    weights = scores.softmax(1)[..., None, None]
    return finish((weights * activations).sum(1), question.images)


def ablation_cam(question: Question, spec: str, *, protocol: str) -> Tensor:
    """Feature maps weighted by how much the score falls when that map is set to zero; (N,H,W) in [0,1].

    ``published`` divides the fall by the score, as the paper and grad-cam do, which turns the map over where the score
    is negative; ``corrected`` divides by the score's magnitude. Of maps that are never zero grad-cam takes away 1e7
    instead of setting them to zero; the paper does not, and neither do we.

    Only what follows the CAM layer is run for every map.

    Desai & Ramaswamy, Ablation-CAM: Visual Explanations for Deep Convolutional Network via Gradient-free Localization,
    WACV 2020.
    """
    activations, scores = _activations(question)
    channels = torch.arange(activations.shape[1], device=activations.device)
    # The input serves only to get to the layer. One image is enough, unless its own maps are needed further on.
    alone = _takes_one_image(question, activations)
    weights = torch.empty(activations.shape[:2], device=activations.device)
    for n, maps in enumerate(activations):
        for part in channels.split(question.batch.at_once):
            ablated = maps.repeat(len(part), 1, 1, 1)
            ablated[channels[: len(part)], part] = 0
            image = question.images[n : n + 1]
            outputs = _outputs_after(question, image if alone else image.repeat(len(part), 1, 1, 1), ablated)
            weights[n, part] = scores[n] - (outputs * question.weights[n]).sum(1)
    if protocol == "published":
        weights = weights * scores.sign()[:, None]
    return finish((weights[..., None, None] * activations).sum(1), question.images)


def _activations(question: Question) -> tuple[Tensor, Tensor]:
    """The feature maps (N,c,h,w) and the scores (N,) of the images. Raises ValueError for a network without any."""
    passed = forward(question.network, question.images, question.layer)
    return feature_maps(passed), (passed.scores.detach().float() * question.weights).sum(1)


def _outputs_after(question: Question, images: Tensor, activations: Tensor) -> Tensor:
    """What the network makes of *activations* (M,c,h,w) as the output of its CAM layer; (M,K) float32."""

    def replace(module: nn.Module, inputs: object, output: object) -> Tensor:
        return activations

    handle = question.layer.register_forward_hook(replace)
    try:
        with torch.no_grad():
            outputs: Tensor = question.network(images)
        return outputs.float()
    finally:
        handle.remove()


def _takes_one_image(question: Question, activations: Tensor) -> bool:
    """Whether the network goes from one image to the CAM layer, and with several images' maps on from there."""
    try:
        return len(_outputs_after(question, question.images[:1], activations[:1].repeat(2, 1, 1, 1))) == 2
    except RuntimeError:
        # What follows concatenates the maps with others of the image, or counts on as many images as came in.
        return False


def _has_feature_maps(question: Question, **parameters: object) -> None:
    _activations(question)


METHODS = {
    "score_cam": Method(
        score_cam,
        class_discriminative=True,
        parameters={"protocol": PROTOCOL, "target": TARGET, "precision": PRECISION},
        citation="Wang et al., CVPR workshop 2020",
        cost=lambda parameters, image_size: 1 + _FEATURE_MAPS,
        serves=_has_feature_maps,
    ),
    "ablation_cam": Method(
        ablation_cam,
        class_discriminative=True,
        citation="Desai & Ramaswamy, WACV 2020",
        cost=lambda parameters, image_size: 1 + _FEATURE_MAPS // FULL_BATCH,
        serves=_has_feature_maps,
    ),
}
