"""Attribution: which pixels a class score rests on, as one map per image."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from scl_ray.attribution import registry
from scl_ray.attribution.cam import eigen_cam, grad_cam
from scl_ray.attribution.gradients import input_x_gradient, integrated_gradients, saliency
from scl_ray.attribution.layers import cam_layer
from scl_ray.attribution.passes import Forward, Gradients, backward, forward
from scl_ray.attribution.registry import PROTOCOL, Parameter, Resolved, positive_integer

__all__ = ["METHODS", "Method", "cost", "explain", "explain_many", "resolve", "shared_forward"]


@dataclass(frozen=True)
class Method:
    """An attribution method.

    function: called as ``function(forward, gradients, **parameters)`` when it *needs* something of the batch's shared
      passes ("activations", "activation_gradients", "input_gradients"), else as
      ``function(model, images, targets, **parameters)``; gives maps (N,H,W).
    class_discriminative: whether the map depends on the class that is explained.
    version: raised when the definition changes, so that stored scores are computed again.
    cost: forward passes an image takes beyond the shared ones, a backward counting two, by the parameters.
    """

    function: Callable[..., Tensor]
    class_discriminative: bool
    citation: str
    needs: frozenset[str] = frozenset()
    parameters: Mapping[str, Parameter] = field(default_factory=lambda: {"protocol": PROTOCOL})
    version: int = 1
    cost: Callable[[Mapping[str, Any]], int] = lambda parameters: 0

    @property
    def defaults(self) -> dict[str, Any]:
        return registry.defaults(self)


METHODS: dict[str, Method] = {
    "grad_cam": Method(
        grad_cam,
        class_discriminative=True,
        needs=frozenset({"activations", "activation_gradients"}),
        citation="Selvaraju et al., ICCV 2017",
    ),
    "eigen_cam": Method(
        eigen_cam,
        class_discriminative=False,
        needs=frozenset({"activations"}),
        citation="Muhammad & Yeasin, IJCNN 2020",
    ),
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
        parameters={"protocol": PROTOCOL, "steps": positive_integer(50)},
        citation="Sundararajan et al., ICML 2017",
        cost=lambda parameters: 3 * int(parameters["steps"]),
    ),
}


def resolve(spec: str, **parameters: Any) -> Resolved[Method]:
    """The method that *spec* names, built in or ``module:callable``. Raises ValueError in one sentence."""
    return registry.resolve(spec, METHODS, "method", _user_method, parameters)


def explain(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    method: str,
    *,
    layer: nn.Module | None = None,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
    seed: int = 0,
    image_ids: Sequence[int] | Tensor | None = None,
    reference: Tensor | None = None,
    **parameters: Any,
) -> Tensor:
    """Attribution maps (N,H,W) float32 of the class scores *targets* (N,) int64 on *images* (N,C,H,W).

    model: any module in evaluation mode from normalised images to class scores (N,K).
    method: a name of `METHODS`, a spec as ``integrated_gradients[steps=20]``, or ``module:callable``, a function
      ``(model, images, targets, **parameters)`` that gives (N,H,W).
    layer: what CAMs explain; by default the last block whose output feeds the global pooling.
    mean, std, seed, image_ids, reference: the pixel space, the seed, the images' identities and a fixed set of other
      images, for methods that draw noise or need other images; those built in now do neither.

    CAMs lie in [0,1] and are all zero where nothing is positive; the others keep their scale and sign. Raises
    ValueError for an unknown method or parameter, and for a network that the method cannot explain.
    """
    spec = resolve(method, **parameters).spec
    return explain_many(model, images, targets, [spec], layer=layer)[spec]


def explain_many(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    methods: Sequence[str],
    *,
    layer: nn.Module | None = None,
    passed: Forward | None = None,
) -> dict[str, Tensor]:
    """The maps of several methods, as `explain` gives them, by spec: from one forward and one backward pass.

    passed: a forward pass of these images prepared for these methods by `shared_forward`, to be used again.
    """
    resolved = {spec: resolve(spec) for spec in methods}
    needs = frozenset().union(*(part.entry.needs for part in resolved.values()))
    if passed is None and needs:
        passed = shared_forward(model, images, methods, layer=layer)
    gradients = Gradients(None, None)
    if passed is not None and needs & {"activation_gradients", "input_gradients"}:
        gradients = backward(passed, targets)
    maps = {}
    for spec, part in resolved.items():
        inputs = (passed, gradients) if part.entry.needs else (model, images, targets)
        found = part.entry.function(*inputs, **part.parameters).detach().float()
        if found.shape != (len(images), *images.shape[2:]):
            raise ValueError(f"{spec} gave maps of shape {tuple(found.shape)}, not one (H,W) map an image")
        maps[spec] = found
    return maps


def shared_forward(
    model: nn.Module, images: Tensor, methods: Sequence[str], *, layer: nn.Module | None = None
) -> Forward:
    """One forward pass that keeps what the given methods need, for any class: class scores come with it."""
    needs = frozenset().union(*(resolve(spec).entry.needs for spec in methods))
    if "activations" not in needs:
        layer = None
    elif layer is None:
        layer = cam_layer(model, images[:1])
    return forward(model, images, layer, to_input="input_gradients" in needs)


def cost(methods: Sequence[str], *, shared: bool = False) -> int:
    """Forward passes that explaining one image by all of *methods* takes.

    A backward to the input counts two; one that stops at the CAM layer costs next to nothing. *shared*: the forward
    pass is there already.
    """
    resolved = [resolve(spec) for spec in methods]
    needs = frozenset().union(*(part.entry.needs for part in resolved))
    passes = int(bool(needs) and not shared) + 2 * ("input_gradients" in needs)
    return passes + sum(part.entry.cost(part.parameters) for part in resolved)


def _user_method(function: Callable[..., Tensor]) -> Method:
    def call(model: nn.Module, images: Tensor, targets: Tensor, **parameters: Any) -> Tensor:
        with torch.enable_grad():
            return function(model, images, targets, **registry.accepted(function, parameters))

    parameters = registry.parameters_of(function, given=3)
    return Method(call, class_discriminative=True, citation="the user's own", parameters=parameters)
