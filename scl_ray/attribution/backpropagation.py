"""Methods that change how a ReLU passes gradients back.

They give a changed gradient per channel, (N,C,H,W), which adds up to no score; as in saliency, a pixel's value is the
largest magnitude over its channels.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scl_ray.attribution.method import Method
from scl_ray.attribution.passes import backward, forward
from scl_ray.attribution.question import Question
from scl_ray.attribution.rules import Ruled, rewritten, with_gradient


def guided_backprop(question: Question, spec: str, *, protocol: str) -> Tensor:
    """Magnitude of the score's gradient, of which every ReLU passes only what is positive and met a positive input;
    the maximum over the channels; (N,H,W), at least 0.

    Springenberg et al., Striving for Simplicity: The All Convolutional Net, ICLR workshop 2015.
    """
    return _backpropagated(question, "guided_backprop", lambda x, gradient: gradient.relu() * (x > 0))


def deconvolution(question: Question, spec: str, *, protocol: str) -> Tensor:
    """Magnitude of the score's gradient, of which every ReLU passes what is positive, whatever its input was; the
    maximum over the channels; (N,H,W), at least 0.

    Zeiler & Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014.
    """
    return _backpropagated(question, "deconvolution", lambda x, gradient: gradient.relu())


def guided_grad_cam(question: Question, spec: str, *, protocol: str) -> Tensor:
    """`guided_backprop` times the rectified Grad-CAM map, resized bilinearly to the image; (N,H,W), at least 0.

    The Grad-CAM map keeps its scale, as in Captum, which resizes by the nearest neighbour where the paper does so
    bilinearly.

    Selvaraju et al., Grad-CAM, ICCV 2017, section 3.2.
    """
    guided = _backpropagated(question, "guided_grad_cam", lambda x, gradient: gradient.relu() * (x > 0))
    passed = forward(question.network, question.images, question.layer)
    activations, gradients = passed.activations, backward(passed, question.weights).activations
    assert activations is not None
    assert gradients is not None
    cam = (gradients.mean((2, 3), keepdim=True) * activations.detach()).sum(1, keepdim=True).relu()
    return guided * F.interpolate(cam, question.images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


def _backpropagated(question: Question, method: str, passes: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Magnitudes (N,H,W) of the score's gradient, of which a ReLU passes back ``passes(input, gradient)``."""

    def relu(operation: nn.Module, x: Tensor) -> Tensor:
        known = x.detach()
        return with_gradient(known.relu, lambda gradient: (passes(known, gradient),), x)

    images = question.images.detach().requires_grad_()
    with torch.enable_grad():
        outputs = Ruled(rewritten(question, method), {nn.ReLU: relu}).run(images)
        (gradient,) = torch.autograd.grad((outputs * question.weights).sum(), images)
    return gradient.abs().amax(1)


def _has_relu(method: str) -> Callable[..., None]:
    def check(question: Question, **parameters: object) -> None:
        if not any(type(module) is nn.ReLU for module in rewritten(question, method).modules()):
            name = type(question.batch.model).__name__
            raise ValueError(f"{method} changes how ReLUs pass gradients back, and {name} has none; use saliency")
        if method == "guided_grad_cam":
            forward(question.network, question.images, question.layer)

    return check


METHODS = {
    "guided_backprop": Method(
        guided_backprop,
        class_discriminative=True,
        citation="Springenberg et al., ICLR workshop 2015",
        cost=lambda parameters, image_size: 3,
        serves=_has_relu("guided_backprop"),
    ),
    "deconvolution": Method(
        deconvolution,
        class_discriminative=True,
        citation="Zeiler & Fergus, ECCV 2014",
        cost=lambda parameters, image_size: 3,
        serves=_has_relu("deconvolution"),
    ),
    "guided_grad_cam": Method(
        guided_grad_cam,
        class_discriminative=True,
        citation="Selvaraju et al., ICCV 2017",
        cost=lambda parameters, image_size: 4,
        serves=_has_relu("guided_grad_cam"),
    ),
}
