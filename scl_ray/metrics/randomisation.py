"""Randomisation: does the map depend on the class and on what the network has learned?

A map that explains the network changes when its weights are drawn anew. Layers are re-initialised one after the other,
each time all methods explain the same class again, and what is left of the original map is measured.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scl_ray import attribution
from scl_ray.attribution import Batch
from scl_ray.attribution.registry import PROTOCOL, positive_integer, positive_number
from scl_ray.attribution.seeding import generator
from scl_ray.metrics.metric import Metric
from scl_ray.metrics.ranking import rounded
from scl_ray.metrics.ssim import explain_other_class, other_class_cost, structural_similarity
from scl_ray.metrics.undefined import CHANGED, FLAT
from scl_ray.readout import ReadOut

# Of a ResNet-18 with its read-out: convolutions and batch-norms are layers of their own.
LAYERS = 41
BINS = 100


def random_logit(batch: Batch, maps: Tensor, changed: Tensor, *, protocol: str) -> Tensor:
    """SSIM of the map with that of a random other class, in [-1,1]; lower is better.

    Each map over its largest magnitude, so that signs stay, and the data range is that of the two together. The other
    class is that of `ssim_contrastivity`. ``published`` lays the maps out as rows of pixels, whose windows are seven
    neighbours in a row, as Quantus does.

    Sixt et al., When Explanations Lie: Why Many Modified BP Attributions Fail, ICML 2020.
    """
    pair = torch.stack([found / found.abs().amax((1, 2), keepdim=True) for found in (maps, changed)])
    first, second = pair.flatten(2) if protocol == "published" else pair
    return structural_similarity(first, second, pair.amax((0, 2, 3)) - pair.amin((0, 2, 3)))


def explain_randomised(batch: Batch, maps: Mapping[str, Tensor], spec: str, *, protocol: str) -> dict[str, Tensor]:
    """Rank correlations (N,layers) of the maps with those of the network, its layers randomised from the top down."""
    ranks = {method: _ranks(original, protocol) for method, original in maps.items()}
    found: dict[str, list[Tensor]] = {method: [] for method in maps}
    for randomised in cascade(batch):
        for method, changed in attribution.explain_many(randomised, maps).items():
            found[method].append((ranks[method] * _ranks(changed, protocol)).sum(1))
    return {method: torch.stack(of_layers, 1) for method, of_layers in found.items()}


def explain_randomised_smoothly(
    batch: Batch, maps: Mapping[str, Tensor], spec: str, *, samples: int, noise: float, protocol: str
) -> dict[str, Tensor]:
    """Rank correlations (N,layers) of averaged maps, with layers randomised from the bottom up, as Quantus does.

    A map is the average over the image and *samples* - 1 noisy copies of it, the same for every network. ``corrected``
    adds Gaussian noise of standard deviation *noise* and clamps to [0,1] in pixel space; ``published`` adds noise of
    *noise* times the range of the normalised image to it, as Quantus does.
    """
    ranks = {
        method: _ranks(found, protocol) for method, found in _smooth(batch, maps, samples, noise, protocol).items()
    }
    found: dict[str, list[Tensor]] = {method: [] for method in maps}
    for randomised in cascade(batch, from_top=False):
        clean = attribution.explain_many(randomised, maps)
        for method, changed in _smooth(randomised, clean, samples, noise, protocol).items():
            found[method].append((ranks[method] * _ranks(changed, protocol)).sum(1))
    return {method: torch.stack(of_layers, 1) for method, of_layers in found.items()}


def explain_all_randomised(batch: Batch, maps: Mapping[str, Tensor], spec: str, *, protocol: str) -> dict[str, Tensor]:
    """The maps of all methods for the network with all layers randomised."""
    *_, randomised = cascade(batch)
    return attribution.explain_many(randomised, maps)


def rank_correlation(batch: Batch, maps: Tensor, correlations: Tensor, *, protocol: str, **parameters: Any) -> Tensor:
    """Spearman's correlation of the magnitudes of the map and of the randomised networks' maps, averaged over the
    layers, in [-1,1]; lower is better: the map depends on the weights.

    Equal magnitudes share a rank; ``corrected`` rounds them to 1e-6 of the largest first, and leaves out the layers
    after which the map is constant. ``published`` counts the untouched network as one more layer, and has no value
    where a map is constant, as Quantus.

    Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018; of averaged maps: Hedström et al., Sanity Checks
    Revisited, XAI in Action workshop at NeurIPS 2023.
    """
    if protocol == "published":
        return (correlations.sum(1) + 1) / (correlations.shape[1] + 1)
    return correlations.nanmean(1)


def efficient_mprt(batch: Batch, maps: Tensor, changed: Tensor, *, protocol: str) -> Tensor:
    """Rise in complexity of the map when all layers are randomised, over its complexity, at least -1; higher is better:
    a map of noise is more complex than one of what was learned.

    Complexity is the entropy of the histogram of the map's values in 100 bins between its minimum and maximum.

    Hedström et al., Sanity Checks Revisited: An Exploration to Repair the Model Parameter Randomisation Test, XAI in
    Action workshop at NeurIPS 2023.
    """
    before, after = _histogram_entropy(maps), _histogram_entropy(changed)
    return (after - before) / before


def cascade(batch: Batch, *, from_top: bool = True) -> Iterator[Batch]:
    """The batch with a network of which one more layer is randomised each time, from the top (the read-out) down, or
    from the bottom up.

    It is one copy, changed in place: use it before asking for the next. What is drawn depends on the batch's seed and
    the layer's name, and on no image, metric or device.
    """
    copied, layers = _randomised_layers(batch)
    layer = _same_module(batch.model, copied, batch.layer or batch.kept.get("layer"))
    tensors = _tensors(copied)
    _assign(tensors, _tensors(batch.model))
    for drawn in layers if from_top else reversed(layers):
        _assign(tensors, drawn)
        randomised = batch.but(model=copied, layer=layer)
        yield randomised
        # Found for one, it is that of all: weights do not decide it.
        layer = randomised.kept.get("layer", layer)


def cascade_cost(methods: list[str], image_size: int, parameters: Mapping[str, Any]) -> int:
    """Forward passes an image takes, for a network of as many layers as a ResNet-18, which is not known here."""
    return LAYERS * attribution.cost(methods, image_size)


def smooth_cascade_cost(methods: list[str], image_size: int, parameters: Mapping[str, Any]) -> int:
    """Forward passes an image takes, for a network of as many layers as a ResNet-18, which is not known here."""
    samples = int(parameters["samples"])
    return (samples - 1 + LAYERS * samples) * attribution.cost(methods, image_size)


def all_randomised_cost(methods: list[str], image_size: int, parameters: Mapping[str, Any]) -> int:
    """Forward passes an image takes."""
    return attribution.cost(methods, image_size)


def _smooth(
    batch: Batch, clean: Mapping[str, Tensor], samples: int, noise: float, protocol: str
) -> Mapping[str, Tensor]:
    """The mean of the *clean* maps and of those of noisy images."""
    streams = batch.generators("smoothed")
    total = dict(clean)
    for _ in range(samples - 1):
        drawn = torch.stack(
            [torch.from_numpy(s.standard_normal(batch.images.shape[1:], dtype="float32")) for s in streams]
        )
        noisy = _noisy(batch, noise * drawn.to(batch.images.device), protocol)
        for method, found in attribution.explain_many(batch.but(images=noisy), clean).items():
            total[method] = total[method] + found
    return {method: summed / samples for method, summed in total.items()}


def _noisy(batch: Batch, added: Tensor, protocol: str) -> Tensor:
    if protocol == "published":
        span = batch.images.amax((1, 2, 3), keepdim=True) - batch.images.amin((1, 2, 3), keepdim=True)
        return batch.images + span * added
    return batch.from_pixels((batch.to_pixels(batch.images) + added).clamp(0, 1))


def _ranks(maps: Tensor, protocol: str) -> Tensor:
    """Ranks (N,H*W) of the magnitudes, centred and of norm one, so that their product is Spearman's correlation; nan
    where all are equal or one is not finite."""
    values = maps.flatten(1).abs()
    if protocol == "corrected":
        values = rounded(values)
    ordered, order = values.sort(1)
    positions = torch.arange(values.shape[1], device=values.device).expand_as(order)
    # Equal values share the mean of their first and last position.
    steps = ordered[:, 1:] > ordered[:, :-1]
    first = F.pad(steps, (1, 0), value=True).mul(positions).cummax(1).values
    last = torch.where(F.pad(steps, (0, 1), value=True), positions, values.shape[1]).flip(1).cummin(1).values.flip(1)
    ranks = torch.empty_like(ordered, dtype=torch.float64).scatter_(1, order, (first + last).double())
    centred = ranks - ranks.mean(1, keepdim=True)
    finite = values.isfinite().all(1, keepdim=True)
    return torch.where(finite, centred / centred.norm(dim=1, keepdim=True), torch.nan)


def _histogram_entropy(maps: Tensor) -> Tensor:
    """Entropy (N,) in nats of the shares of pixels in each bin."""
    values = maps.flatten(1).double()
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    # The largest value belongs to the last bin.
    bins = ((values - low) / (high - low) * BINS).long().clamp(0, BINS - 1)
    counts = torch.zeros(len(values), BINS, dtype=values.dtype, device=values.device)
    counts.scatter_add_(1, bins, torch.ones_like(values))
    return torch.special.entr(counts / values.shape[1]).sum(1)


def _randomised_layers(batch: Batch) -> tuple[nn.Module, list[dict[str, Tensor]]]:
    """A copy of the model and, from the top down, new values for each layer's tensors by name; made once a model."""
    key = f"randomised[seed={batch.seed}]"
    if key not in batch.kept:
        batch.kept[key] = copy.deepcopy(batch.model), _draw(batch)
    kept: tuple[nn.Module, list[dict[str, Tensor]]] = batch.kept[key]
    return kept


def _draw(batch: Batch) -> list[dict[str, Tensor]]:
    # On the CPU, so that every device draws the same.
    blank = copy.deepcopy(batch.model).cpu()
    layers: list[dict[str, Tensor]] = []
    for name, module in reversed(list(blank.named_modules())):
        reset = _reset_of(module)
        tensors = {f"{name}.{own}".lstrip("."): tensor for own, tensor in _tensors(module).items()}
        if reset is None or not tensors:
            continue
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            # Not torch.manual_seed, which would seed the other devices too.
            torch.default_generator.manual_seed(int(generator(batch.seed, 0, f"randomised {name}").integers(2**63)))
            reset()
            if not layers and isinstance(prototypes := getattr(blank, "prototypes", None), Tensor):
                # The read-out of the target of that name.
                tensors["prototypes"] = F.normalize(torch.randn_like(prototypes), dim=1)
        layers.append({own: tensor.detach().clone().to(batch.images.device) for own, tensor in tensors.items()})
    if not layers:
        raise ValueError(f"{type(batch.model).__name__} has no layers with reset_parameters, so none can be randomised")
    return layers


def _reset_of(module: nn.Module) -> Callable[[], None] | None:
    """What draws a module's parameters anew; None for one that has none."""
    if isinstance(module, ReadOut):
        return lambda: _reset_read_out(module)
    reset: Callable[[], None] | None = getattr(module, "reset_parameters", None)
    return reset


def _reset_read_out(module: ReadOut) -> None:
    """Weights of the same scale: it was fitted, so there is no initial distribution to return to."""
    for values in (module.weight, module.bias):
        values.copy_(torch.randn_like(values) * values.square().mean().sqrt())


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; a shared one under each of its names."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


@torch.no_grad()
def _assign(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        tensors[name].copy_(value)


def _same_module(model: nn.Module, copied: nn.Module, module: nn.Module | None) -> nn.Module | None:
    if module is None:
        return None
    return copied.get_submodule(next(name for name, own in model.named_modules() if own is module))


_RERUN = frozenset({"re-explanation"})

METRICS = {
    "random_logit": Metric(
        random_logit,
        passes=explain_other_class,
        cost=other_class_cost,
        needs=_RERUN | {"class"},
        undefined=FLAT + CHANGED,
        facet="contrastivity",
        direction="lower",
        range=(-1, 1),
        citation="Sixt et al., ICML 2020",
    ),
    "mprt": Metric(
        rank_correlation,
        passes=explain_randomised,
        cost=cascade_cost,
        needs=_RERUN,
        facet="randomisation",
        direction="lower",
        range=(-1, 1),
        citation="Adebayo et al., NeurIPS 2018",
    ),
    "smooth_mprt": Metric(
        rank_correlation,
        passes=explain_randomised_smoothly,
        cost=smooth_cascade_cost,
        needs=_RERUN,
        parameters={"protocol": PROTOCOL, "samples": positive_integer(10), "noise": positive_number(0.1)},
        facet="randomisation",
        direction="lower",
        range=(-1, 1),
        citation="Hedström et al., XAI in Action workshop, NeurIPS 2023",
    ),
    "efficient_mprt": Metric(
        efficient_mprt,
        passes=explain_all_randomised,
        cost=all_randomised_cost,
        needs=_RERUN,
        undefined=FLAT + CHANGED,
        facet="randomisation",
        direction="higher",
        range=(-1, float("inf")),
        citation="Hedström et al., XAI in Action workshop, NeurIPS 2023",
    ),
}
