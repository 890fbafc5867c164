"""Layer-wise relevance propagation: a score is shared out, layer by layer, in proportion to contributions.

Relevance is passed back as relevance over activation, which is what a gradient is in the layers that are left as they
are: sums, means, max-pooling and ReLUs need no rule, and an addition splits relevance in proportion to its terms.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functional_call

from scl_ray.attribution.rules import ACTIVATIONS, Ruled, with_gradient


def relevances(network: fx.GraphModule, images: Tensor, weights: Tensor, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Relevances (N,C,H,W) of *images* (N,C,H,W) for the score, the outputs of *network* times *weights* (N,K); what
    the biases absorbed of it (N,); the outputs (N,K). Relevances and what is absorbed add up to the score.
    """
    images = images.detach().requires_grad_()
    # Biases are weights of an input that is one, whose relevance is theirs.
    one = images.new_ones(len(images), requires_grad=True)
    with torch.enable_grad():
        outputs = Ruled(network, _Rules(one, gamma).by_operation).run(images)
        passed, absorbed = torch.autograd.grad(outputs, (images, one), weights, materialize_grads=True)
    return images.detach() * passed, absorbed, outputs.detach()


class _Rules:
    """What replaces the operations that have a bias or do not share out in proportion.

    one: (N,), the input whose weights the biases are. gamma: of LRP-gamma.
    """

    def __init__(self, one: Tensor, gamma: float) -> None:
        self.one = one
        self.gamma = gamma
        self.by_operation: dict[Any, Callable[..., Tensor]] = {
            **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), self.convolution),
            **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), self.batch_norm),
            **dict.fromkeys((operator.add, torch.add), self.addition),
            **dict.fromkeys((operator.mul, torch.mul), self.product),
            **dict.fromkeys((F.normalize, *ACTIVATIONS), self.identity),
            **dict.fromkeys((nn.Sigmoid, nn.Hardsigmoid, torch.sigmoid, F.hardsigmoid), self.gate),
            nn.Linear: lambda layer, x: self.linear(F.linear, x, layer.weight, layer.bias),
            F.linear: self.linear,
        }
        del self.by_operation[nn.ReLU]  # its gradient is output over input

    def convolution(self, layer: nn.Conv2d, x: Tensor) -> Tensor:
        """LRP-gamma for inputs and outputs of either sign: contributions that have the output's sign count 1 + gamma
        times. What the shares are taken of is never smaller than the output, so nothing has to keep them from zero.
        """
        weight, bias = layer.weight, layer.bias
        z = self._biased(self._convolve(layer, x, weight), bias, 1)
        # Were all outputs positive: the positive contributions, and so the positive part of the bias, are raised.
        if (x < 0).any():
            raised = self._convolve(layer, x.clamp(min=0), self._raised(weight, min=0))
            raised = raised + self._convolve(layer, x.clamp(max=0), self._raised(weight, max=0))
        else:
            raised = self._convolve(layer, x, self._raised(weight, min=0))
        raised = self._biased(raised, None if bias is None else self._raised(bias, min=0), 1)
        # With the negative ones raised instead: both together are 2 + gamma times the output.
        shared = torch.where(z > 0, raised, (2 + self.gamma) * z - raised)
        return shared * (z / shared.where(shared != 0, 1)).detach()

    def linear(self, operation: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """LRP-0."""
        return self._biased(operation(x, weight), bias, -1)

    def batch_norm(self, layer: nn.BatchNorm2d, x: Tensor) -> Tensor:
        """LRP-0, where it is not folded."""
        if layer.running_mean is None or layer.running_var is None:
            return layer(x)
        slope = (layer.running_var + layer.eps).rsqrt() * (1 if layer.weight is None else layer.weight)
        bias = -layer.running_mean * slope + (0 if layer.bias is None else layer.bias)
        return self._biased(x * slope.view(-1, *[1] * (x.ndim - 2)), bias, 1)

    def identity(self, operation: Callable[..., Tensor], x: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        """The relevance of each number is that of what became of it; the norm, in a normalisation, is a constant."""
        at = x.detach()
        output = operation(at, *arguments, **keywords)
        ratio = torch.where(at == 0, 0, output / at.where(at != 0, 1))
        return with_gradient(lambda: output, lambda gradient: (gradient * ratio,), x)

    def gate(self, operation: Callable[..., Tensor], x: Tensor) -> Tensor:
        """A gate is a constant; what it lets through takes all relevance (Arras et al., Explaining
        and Interpreting LSTMs, 2019)."""
        return operation(x.detach())

    def addition(self, operation: Callable[..., Tensor], a: Any, b: Any, **keywords: Any) -> Tensor:
        """Terms that do not depend on the image are biases; between others, relevance is shared out in proportion."""
        terms = [term for term in (a, b) if isinstance(term, Tensor) and term.requires_grad]
        if len(terms) != 1 or keywords:
            return operation(a, b, **keywords)
        return terms[0] + (b if terms[0] is a else a) * self._one(terms[0])

    def product(self, operation: Callable[..., Tensor], a: Any, b: Any) -> Tensor:
        """Factors that both depend on the image take half each (Achtibat et al., AttnLRP, ICML 2024)."""
        if not all(isinstance(factor, Tensor) and factor.requires_grad for factor in (a, b)):
            return operation(a, b)
        return (operation(a, b.detach()) + operation(a.detach(), b)) / 2

    def _convolve(self, layer: nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
        none = {} if layer.bias is None else {"bias": torch.zeros_like(layer.bias)}
        return functional_call(layer, {"weight": weight, **none}, x)

    def _raised(self, weights: Tensor, **sign: float) -> Tensor:
        return weights + self.gamma * weights.clamp(**sign)

    def _biased(self, x: Tensor, bias: Tensor | None, dim: int) -> Tensor:
        if bias is None:
            return x
        shape = [1] * x.ndim
        shape[dim] = -1
        return x + bias.view(shape) * self._one(x)

    def _one(self, x: Tensor) -> Tensor:
        return self.one.view(-1, *[1] * (x.ndim - 1))
