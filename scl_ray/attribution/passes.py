"""One forward and one backward pass of a batch, and what every gradient and CAM method reads from them."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

# A forward pass of fewer images leaves a core idle: the perturbed copies of a small batch are gathered up to this many.
FULL_BATCH = 64


class Forward(NamedTuple):
    """A forward pass with its graph: one is enough for any number of classes to explain.

    images: (N,C,H,W), requiring gradients where input gradients are wanted.
    scores: (N,K), the network's outputs: class scores, where these are explained.
    activations: (N,c,h,w), the output of the CAM layer; None where no layer was asked for.
    """

    images: Tensor
    scores: Tensor
    activations: Tensor | None


class Gradients(NamedTuple):
    """Gradients of each image's score; None where the forward pass did not prepare for them.

    activations: (N,c,h,w), with respect to the CAM layer's output. images: (N,C,H,W), with respect to the image.
    """

    activations: Tensor | None
    images: Tensor | None


def must_evaluate(model: nn.Module) -> None:
    """Raise ValueError when a part of *model* is in training mode, where images mix and draw at random."""
    name = next((name for name, module in model.named_modules() if module.training), None)
    if name is not None:
        part = f"the model's {name}" if name else "the model"
        raise ValueError(f"{part} is in training mode, where batch-norm mixes images; call model.eval() first")


def forward(model: nn.Module, images: Tensor, layer: nn.Module | None = None, *, to_input: bool = False) -> Forward:
    """Run *model* on *images* once, keeping the output of *layer* and the graph from there, or from the input.

    Raises ValueError when the model is in training mode or the layer's output is no batch of feature maps.
    """
    must_evaluate(model)
    images = images.detach().requires_grad_(to_input)
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: object) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 4:
            raise ValueError(f"{type(module).__name__} gives no feature maps (N,C,H,W), so it cannot be the CAM layer")
        # Nothing below the layer needs a graph when only its own gradient is wanted: it begins here.
        torch.set_grad_enabled(True)
        activations = output if to_input else output.detach().requires_grad_()
        kept[:] = [activations]
        # What follows may work in place (a ReLU): on a copy, so that the activations stay as they are.
        return activations.clone()

    handle = layer.register_forward_hook(keep) if layer is not None else None
    try:
        with torch.set_grad_enabled(to_input):
            scores = model(images)
    finally:
        if handle is not None:
            handle.remove()
    if layer is not None and not kept:
        raise ValueError(f"the CAM layer, a {type(layer).__name__}, is not part of what the model computes")
    return Forward(images, scores, kept[0] if kept else None)


def backward(passed: Forward, weights: Tensor) -> Gradients:
    """Gradients of the outputs times *weights* (N,K), summed, in one backward pass that leaves the graph in place.

    Raises ValueError when the outputs have no gradient there.
    """
    if not passed.scores.requires_grad:
        raise ValueError("the network computes its scores without gradients, as under torch.no_grad()")
    sources = [t for t in (passed.activations, passed.images) if t is not None and t.requires_grad]
    # Images do not mix in evaluation mode, so the gradient of the sum holds each image's own.
    found = torch.autograd.grad((passed.scores * weights).sum(), sources, retain_graph=True, allow_unused=True)
    if any(gradient is None for gradient in found):
        raise ValueError("the class scores do not depend on the CAM layer, so it cannot explain them")
    gradients = dict(zip(map(id, sources), found, strict=True))
    return Gradients(gradients.get(id(passed.activations)), gradients.get(id(passed.images)))
