"""DeepLIFT: multipliers, which times the image's difference from a baseline add up to the score's difference.

A multiplier is passed back like a gradient, with that of each nonlinear operation averaged on the line from what it was
given for the baseline to what it was given for the image. For an activation this is the rescale rule, the difference of
its outputs over that of its inputs.
"""

import operator
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from scl_ray.attribution.rules import ACTIVATIONS, Ruled, with_gradient

# Below this difference of an activation's inputs, that of its outputs is mostly rounding; its slope takes its place.
_NEAR = 1e-6

# Quadrature on the line, exact to rounding for an operation as smooth as a norm.
_NODES = tuple(zip(*np.polynomial.legendre.leggauss(32), strict=True))


def lift(network: fx.GraphModule, images: Tensor, baselines: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Attributions (N,C,H,W) of *images* (N,C,H,W) for the score, the outputs of *network* times *weights* (N,K), as
    means over the *baselines* (B,C,H,W), which are the same for all images; the outputs (N,K) for the images; those
    (K,) for the baselines, means too.

    One forward pass of images and baselines, and a backward pass for each baseline.
    """
    rules = _Rules()
    with torch.no_grad():
        reference = Ruled(network, dict.fromkeys(rules.by_operation, rules.record)).run(baselines)
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        outputs = Ruled(network, rules.by_operation).run(images)
    attributions = torch.zeros_like(images)
    for position, baseline in enumerate(baselines):
        rules.baseline = position
        (multipliers,) = torch.autograd.grad(outputs, images, weights, retain_graph=True)
        attributions = attributions + multipliers * (images.detach() - baseline)
    return attributions / len(baselines), outputs.detach(), reference.mean(0)


class _Rules:
    """What replaces the nonlinear operations, of which every rule first records what the baselines give it.

    baseline: which of them the multipliers passed back at the moment refer to.
    """

    baseline = 0

    def __init__(self) -> None:
        self.recorded: list[tuple[Tensor, ...]] = []
        self.next: Iterator[tuple[Tensor, ...]] = iter(self.recorded)
        self.by_operation: dict[Any, Callable[..., Tensor]] = {
            **dict.fromkeys(ACTIVATIONS, self.rescale),
            **dict.fromkeys((nn.MaxPool2d, F.max_pool2d, torch.max_pool2d), self.max_pool),
            **dict.fromkeys((operator.mul, torch.mul), self.product),
            F.normalize: self.average,
        }

    def record(self, operation: Callable[..., Tensor], *arguments: Any, **keywords: Any) -> Tensor:
        self.recorded.append(arguments)
        return operation(*arguments, **keywords)

    def rescale(self, operation: Callable[..., Tensor], x: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        """Shrikumar et al. (2017), section 3.5.1, eq. 10 to 12."""
        at, start = x.detach(), next(self.next)[0]

        def activate(x: Tensor) -> Tensor:
            return operation(x, *arguments, **keywords)

        def multiplied(gradient: Tensor) -> tuple[Tensor]:
            begin = start[self.baseline]
            change = at - begin
            near = change.abs() < _NEAR
            ratio = (activate(at) - activate(begin)) / change.where(~near, 1)
            return (gradient * torch.where(near, _slope(activate, at), ratio),)

        return with_gradient(partial(activate, at), multiplied, x)

    def max_pool(self, operation: Callable[..., Tensor], x: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        """A larger maximum is the doing of the pixel where it is now, a smaller one of the pixel where it was.

        Their own difference is at least that of the maxima, so no multiplier exceeds 1. Captum's rule, except that it
        adds up what overlapping windows give a pixel, where Captum keeps only one of them.
        """
        at, start = x.detach(), next(self.next)[0]
        if isinstance(operation, nn.MaxPool2d):
            of = operation
            arguments = (of.kernel_size, of.stride, of.padding, of.dilation, of.ceil_mode)
        keywords["return_indices"] = True
        highest, place = F.max_pool2d(at, *arguments, **keywords)

        def multiplied(gradient: Tensor) -> tuple[Tensor]:
            begin = start[self.baseline]
            was_highest, was_place = F.max_pool2d(begin[None], *arguments, **keywords)
            change = highest - was_highest
            where = torch.where(change >= 0, place, was_place).flatten(2)
            own = (at - begin).flatten(2).gather(2, where)
            share = torch.where(own == 0, 1, change.flatten(2) / own.where(own != 0, 1))
            passed = torch.zeros_like(at).flatten(2).scatter_add(2, where, gradient.flatten(2) * share)
            return (passed.view_as(at),)

        return with_gradient(lambda: highest, multiplied, x)

    def product(self, operation: Callable[..., Tensor], a: Any, b: Any) -> Tensor:
        """Of two factors that both depend on the image, each is multiplied by the other's mean."""
        starts = next(self.next)
        if not (isinstance(a, Tensor) and isinstance(b, Tensor) and a.requires_grad and b.requires_grad):
            return operation(a, b)
        first, second = a.detach(), b.detach()

        def multiplied(gradient: Tensor) -> tuple[Tensor, Tensor]:
            was_first, was_second = (start[self.baseline] for start in starts)
            return (
                (gradient * (second + was_second) / 2).sum_to_size(first.shape),
                (gradient * (first + was_first) / 2).sum_to_size(second.shape),
            )

        return with_gradient(lambda: operation(first, second), multiplied, a, b)

    def average(self, operation: Callable[..., Tensor], x: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        """The mean gradient on the line, by Gauss-Legendre quadrature in float64.

        A norm has no gradient at zero; from there on, the line goes through all multiples of what was given, and each
        number is rescaled. A network without biases makes zero of the mean image.
        """
        at, start = x.detach(), next(self.next)[0]
        output = operation(at, *arguments, **keywords)

        def multiplied(gradient: Tensor) -> tuple[Tensor]:
            end, begin = at.double(), start[self.baseline].double()
            if not begin.any():
                return (gradient * torch.where(at == 0, 0, output / at.where(at != 0, 1)),)
            mean = torch.zeros_like(end)
            for node, weight in _NODES:
                point = (begin + (node + 1) / 2 * (end - begin)).requires_grad_()
                with torch.enable_grad():
                    there = operation(point, *arguments, **keywords)
                mean += weight / 2 * torch.autograd.grad(there, point, gradient.double())[0]
            return (mean.to(at),)

        return with_gradient(lambda: output, multiplied, x)


def _slope(activate: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    point = at.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(activate(point).sum(), point)[0]
