"""Attribution: which pixels a class score rests on, as one map per image."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scl_ray.attribution import (
    augmented,
    backpropagation,
    cam,
    cam_perturbation,
    controls,
    gradients,
    perturbation,
    registry,
    relevance,
)
from scl_ray.attribution.batch import Batch
from scl_ray.attribution.method import Method
from scl_ray.attribution.passes import Forward, Gradients, backward, forward, must_evaluate
from scl_ray.attribution.question import CLASSLESS, TARGETS, Question, ask, layer_of
from scl_ray.attribution.registry import Resolved

__all__ = [
    "METHODS", "TARGETS", "Batch", "Method", "Question", "ask", "cost", "explain", "explain_many", "explains_class",
    "resolve", "shared_forward", "shared_passes",
]  # fmt: skip


METHODS: dict[str, Method] = {
    **cam.METHODS, **augmented.METHODS, **cam_perturbation.METHODS, **gradients.METHODS, **backpropagation.METHODS,
    **relevance.METHODS, **perturbation.METHODS, **controls.METHODS,
}  # fmt: skip


def resolve(spec: str, **parameters: Any) -> Resolved[Method]:
    """The method that *spec* names, built in or ``module:callable``. Raises ValueError in one sentence."""
    return registry.resolve(spec, METHODS, "method", _user_method, parameters)


def explains_class(spec: str) -> bool:
    """Whether the maps of *spec* depend on the class that is explained."""
    entry, parameters = resolve(spec)[1:]
    return entry.class_discriminative and parameters.get("target") not in CLASSLESS


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
    reference_labels: Tensor | None = None,
    **parameters: Any,
) -> Tensor:
    """Attribution maps (N,H,W) float32 of the class scores *targets* (N,) int64 on *images* (N,C,H,W).

    model: any module in evaluation mode from normalised images to class scores (N,K).
    method: a name of `METHODS`, a spec as ``integrated_gradients[steps=20]``, or ``module:callable``, a function
      ``(model, images, targets, **parameters)`` that gives (N,H,W).
    layer: what CAMs explain; by default the last block whose output feeds the global pooling.
    mean, std: per channel, the pixel space for noise and clamping; without them images are taken as already in [0,1].
    seed, image_ids: with the method's spec they decide what is drawn for an image; the ids default to 0..N-1.
    reference, reference_labels: a fixed set of other images (M,C,H,W) and their classes (M,), for methods that need
      some; without labels they are of the classes that the model predicts.

    CAMs lie in [0,1] and are all zero where nothing is positive; the others keep their scale and sign. A map is nan
    where its method's own check fails: where what DeepLIFT or LRP share out does not add up to the score. Raises
    ValueError for an unknown method or parameter, and for a network that the method cannot explain.
    """
    spec = resolve(method, **parameters).spec
    batch = Batch(model, images, targets, layer, mean, std, seed, image_ids, reference, reference_labels)
    return explain_many(batch, [spec])[spec]


def explain_many(batch: Batch, methods: Iterable[str]) -> dict[str, Tensor]:
    """The maps of several methods, as `explain` gives them, by spec.

    From one forward and one backward pass for each target, beside what single methods take.
    """
    specs = list(methods)
    return {spec: maps for group in _by_target(specs).values() for spec, maps in _explained(batch, group)}


def _explained(batch: Batch, group: Mapping[str, Resolved[Method]]) -> Iterator[tuple[str, Tensor]]:
    """The maps of methods that answer the same question."""
    _must_fit(batch)
    target = next(iter(group.values())).parameters.get("target", "class_score")
    needs = _needs(group.values())
    passed, gradients = batch.passed.get(target), Gradients(None, None)
    if needs and passed is None:
        passed = _forward(batch, target, needs)
    question = ask(batch, target, passed)
    if passed is not None and needs & {"activation_gradients", "input_gradients"}:
        gradients = backward(passed, question.weights)
    for spec, part in group.items():
        inputs = (passed, gradients) if part.entry.needs else (question, spec)
        parameters = {key: value for key, value in part.parameters.items() if key != "target"}
        maps = part.entry.function(*inputs, **parameters).detach().float()
        if maps.shape != (len(batch.images), *batch.images.shape[2:]):
            raise ValueError(f"{spec} gave maps of shape {tuple(maps.shape)}, not one (H,W) map an image")
        yield spec, maps


def _must_fit(batch: Batch) -> None:
    """Raise ValueError when the parts of *batch* do not go together, which broadcasting might hide."""
    must_evaluate(batch.model)
    images, targets = batch.images, batch.targets
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f"images must be (N,C,H,W), normalised floats, not {tuple(images.shape)} of {images.dtype}")
    if targets.shape != images.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(f"targets must be ({len(images)},) int64, a class for each image, not {tuple(targets.shape)} "
                         f"of {targets.dtype}")  # fmt: skip
    if batch.image_ids is not None and len(batch.image_ids) != len(images):
        raise ValueError(f"image_ids must be {len(images)} numbers, one for each image, not {len(batch.image_ids)}")


def shared_forward(batch: Batch, methods: Iterable[str]) -> dict[str, Forward]:
    """Forward passes that keep what *methods* need, for any class, by target: for `Batch.passed`.

    ``class_score`` is always among them: the class scores come with it.
    """
    return {target: _forward(batch, target, needs) for target, needs in _shared(methods).items()}


def _forward(batch: Batch, target: str, needs: frozenset[str]) -> Forward:
    layer = layer_of(batch) if "activations" in needs else None
    return forward(TARGETS[target].network(batch), batch.images, layer, to_input="input_gradients" in needs)


def shared_passes(methods: Iterable[str]) -> int:
    """Forward passes that `shared_forward` takes."""
    return len(_shared(methods))


def cost(methods: Iterable[str], image_size: int, *, shared: bool = False) -> int:
    """Forward passes that explaining one image of *image_size* squared by all of *methods* takes.

    A backward to the input counts two; one that stops at the CAM layer costs next to nothing. *shared*: what
    `shared_forward` gives is there already.
    """
    passes = 0
    for group in _by_target(methods).values():
        needs = _needs(group.values())
        passes += int(bool(needs) and not shared) + 2 * ("input_gradients" in needs)
        passes += sum(part.entry.cost(part.parameters, image_size) for part in group.values())
    return passes


def check(batch: Batch, methods: Iterable[str]) -> None:
    """Raise ValueError, in one sentence, when the model is one that a method cannot explain.

    *batch* holds one image, which is explained by the methods that take only the shared passes; the others say by
    themselves whether they can.
    """
    resolved = {spec: resolve(spec) for spec in methods}
    explain_many(batch, [spec for spec, part in resolved.items() if part.entry.needs])
    for part in resolved.values():
        question = ask(batch, part.parameters.get("target", "class_score"))
        if part.entry.serves is not None:
            part.entry.serves(question, **part.parameters)


def _shared(methods: Iterable[str]) -> dict[str, frozenset[str]]:
    """What the shared forward pass of each target must keep; class scores are always wanted."""
    needs = {target: _needs(group.values()) for target, group in _by_target(methods).items()}
    return {"class_score": frozenset(), **{target: needed for target, needed in needs.items() if needed}}


def _by_target(methods: Iterable[str]) -> dict[str, dict[str, Resolved[Method]]]:
    groups: dict[str, dict[str, Resolved[Method]]] = {}
    for part in map(resolve, methods):
        groups.setdefault(part.parameters.get("target", "class_score"), {})[part.spec] = part
    return groups


def _needs(parts: Iterable[Resolved[Method]]) -> frozenset[str]:
    return frozenset().union(*(part.entry.needs for part in parts))


def _user_method(function: Callable[..., Tensor]) -> Method:
    def call(question: Question, spec: str, **parameters: Any) -> Tensor:
        batch = question.batch
        with torch.enable_grad():
            return function(batch.model, batch.images, batch.targets, **registry.accepted(function, parameters))

    parameters = registry.parameters_of(function, given=3)
    return Method(call, class_discriminative=True, citation="the user's own", parameters=parameters)
