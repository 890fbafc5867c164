"""Methods that attribute to the pixels themselves, through the gradient at the input.

Each gives a value per channel, (N,C,H,W), and the channels of a pixel are collapsed to one value: the maximum where
only magnitude counts (saliency), the sum where values have a sign and add up to the score (the others).
"""

from collections.abc import Callable

import numpy as np
import torch
from captum.attr import IntegratedGradients
from torch import Tensor

from scl_ray.attribution.copies import in_passes
from scl_ray.attribution.method import Method
from scl_ray.attribution.passes import Forward, Gradients, backward, forward
from scl_ray.attribution.question import Question
from scl_ray.attribution.registry import PROTOCOL, TARGET, positive_integer, positive_number


def saliency(passed: Forward, gradients: Gradients, *, protocol: str) -> Tensor:
    """Magnitude of the class score's gradient, the maximum over the channels; (N,H,W), at least 0.

    Simonyan et al., Deep Inside Convolutional Networks, ICLR workshop 2014, section 3.1.
    """
    assert gradients.images is not None
    return gradients.images.abs().amax(1)


def input_x_gradient(passed: Forward, gradients: Gradients, *, protocol: str) -> Tensor:
    """Normalised image times gradient of the class score, summed over the channels; (N,H,W), signed.

    Shrikumar et al., Not Just a Black Box, arXiv 1605.01713, 2016.
    """
    assert gradients.images is not None
    return (passed.images.detach() * gradients.images).sum(1)


def integrated_gradients(question: Question, spec: str, *, steps: int, protocol: str) -> Tensor:
    """Gradient along the line from the zero of the normalised space (the mean image) to the image, times the
    difference, by Gauss-Legendre quadrature; summed over the channels; (N,H,W), signed.

    Sundararajan et al., Axiomatic Attribution for Deep Networks, ICML 2017; computed by Captum.
    """
    with torch.enable_grad():
        attribution = IntegratedGradients(question.scalar()).attribute(
            question.images,
            additional_forward_args=(question.weights,),
            n_steps=steps,
            internal_batch_size=max(len(question.images), question.batch.at_once),
        )
    return attribution.detach().sum(1)


def smooth_grad(question: Question, spec: str, *, samples: int, noise: float, protocol: str) -> Tensor:
    """Magnitude of the gradient's mean over *samples* noisy copies of the image, the maximum over the channels;
    (N,H,W), at least 0. The protocols differ in what is drawn alone.

    The noise is normal, in pixel space, with a standard deviation of *noise* times the pixel range; nothing is clamped.

    Smilkov et al., SmoothGrad: removing noise by adding noise, arXiv 1706.03825, 2017, section 2.
    """
    batch = question.batch
    streams = batch.generators(spec)

    def noisy(image: Tensor, copy: Tensor) -> tuple[Tensor, float]:
        drawn = np.stack([streams[n].standard_normal(batch.images.shape[1:], np.float32) for n in image.tolist()])
        pixels = batch.to_pixels(batch.images[image]) + noise * torch.from_numpy(drawn).to(batch.images)
        return batch.from_pixels(pixels), 1.0

    return _mean_gradient(question, noisy, samples).abs().amax(1)


def gradient_shap(question: Question, spec: str, *, samples: int, protocol: str) -> Tensor:
    """Gradient at random places on the lines from random baselines to the image, times the difference, in the mean of
    *samples*; summed over the channels; (N,H,W), signed. The protocols differ in what is drawn alone.

    The baselines are drawn from the reference; without one they are the zero of the normalised space (the mean image).
    In expectation the values add up to the score minus the baselines' mean score.

    Lundberg & Lee, A Unified Approach to Interpreting Model Predictions, NeurIPS 2017; as expected gradients in Erion
    et al., Nature Machine Intelligence 3, 2021, eq. 3.
    """
    batch, images = question.batch, question.images
    baselines = torch.zeros_like(images[:1]) if batch.reference is None else batch.reference
    streams = batch.generators(spec)
    place = torch.from_numpy(np.stack([s.random(samples, np.float32) for s in streams])).to(images)
    chosen = torch.from_numpy(np.stack([s.integers(len(baselines), size=samples) for s in streams])).to(images.device)

    def between(image: Tensor, copy: Tensor) -> tuple[Tensor, Tensor]:
        baseline = baselines[chosen[image, copy]]
        way = images[image] - baseline
        return baseline + place[image, copy].view(-1, 1, 1, 1) * way, way

    return _mean_gradient(question, between, samples).sum(1)


def _mean_gradient(
    question: Question, changed: Callable[[Tensor, Tensor], tuple[Tensor, Tensor | float]], samples: int
) -> Tensor:
    """The mean over *samples* copies of each image of the gradient at the copy times a factor; (N,C,H,W).

    *changed* makes the copies (M,C,H,W), and their factors, of pairs of `in_passes`.
    """
    mean = torch.zeros_like(question.images)
    for image, copy in in_passes(question.batch, samples):
        copies, factor = changed(image, copy)
        copies.requires_grad_()
        with torch.enable_grad():
            score = question.score(copies, question.weights[image]).sum()
        mean.index_add_(0, image, torch.autograd.grad(score, copies)[0] * factor, alpha=1 / samples)
    return mean


def _is_differentiable(question: Question, **parameters: object) -> None:
    backward(forward(question.network, question.images, to_input=True), question.weights)


METHODS = {
    "saliency": Method(
        saliency,
        class_discriminative=True,
        needs=frozenset({"input_gradients"}),
        citation="Simonyan et al., ICLR workshop 2014",
    ),
    "input_x_gradient": Method(
        input_x_gradient,
        class_discriminative=True,
        needs=frozenset({"input_gradients"}),
        citation="Shrikumar et al., arXiv 1605.01713, 2016",
    ),
    "integrated_gradients": Method(
        integrated_gradients,
        class_discriminative=True,
        parameters={"protocol": PROTOCOL, "target": TARGET, "steps": positive_integer(50)},
        citation="Sundararajan et al., ICML 2017",
        serves=_is_differentiable,
        cost=lambda parameters, image_size: 3 * int(parameters["steps"]),
    ),
    "smooth_grad": Method(
        smooth_grad,
        class_discriminative=True,
        parameters={
            "protocol": PROTOCOL,
            "target": TARGET,
            "samples": positive_integer(25),
            "noise": positive_number(0.15),
        },
        citation="Smilkov et al., arXiv 1706.03825, 2017",
        serves=_is_differentiable,
        cost=lambda parameters, image_size: 3 * int(parameters["samples"]),
    ),
    "gradient_shap": Method(
        gradient_shap,
        class_discriminative=True,
        parameters={"protocol": PROTOCOL, "target": TARGET, "samples": positive_integer(50)},
        citation="Lundberg & Lee, NeurIPS 2017",
        serves=_is_differentiable,
        cost=lambda parameters, image_size: 3 * int(parameters["samples"]),
    ),
}
