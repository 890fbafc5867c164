"""Methods that attribute to the pixels themselves, through the gradient at the input.

Each gives a value per channel, (N,C,H,W), and the channels of a pixel are collapsed to one value: the maximum where
only magnitude counts (saliency), the sum where values have a sign and add up to the score (the others).
"""

import torch
from captum.attr import IntegratedGradients
from torch import Tensor

from scl_ray.attribution.method import Method
from scl_ray.attribution.passes import Forward, Gradients
from scl_ray.attribution.question import Question
from scl_ray.attribution.registry import PROTOCOL, TARGET, positive_integer


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
        cost=lambda parameters, image_size: 3 * int(parameters["steps"]),
    ),
}
