"""Quantus' own metrics, as ``quantus:<ClassName>`` with the scalar parameters of the class's constructor.

For what has no counterpart here, and to compare with published figures. Quantus runs as it is, image by image, on the
model itself: far slower than the metrics of this package. What it draws is seeded for each image; the global random
states stay as they were. A value is what Quantus returns for the image alone, with these reductions and departures:

- ``PixelFlipping``, ``RegionPerturbation`` and ``Selectivity`` give curves: the value is Quantus' area under it.
- ``MPRT`` gives a similarity for each layer: the value is their mean, without the unchanged network that Quantus' own
  mean includes.
- ``IROF`` fails on images of several channels, whose mask it does not broadcast: it is given a mask that fits.
- ``RandomLogit`` draws the other class by one seed for all images: it is seeded for each, among the network's classes.
- Of ``RegionPerturbation``, whose values are drops of the class's score, higher is better; Quantus says lower.

A map that Quantus refuses (flat, or negative everywhere) leaves the value undefined, also when it explains again.
Classes that cannot be had are refused by name, with what to use instead (`scl_ray.metrics.quantus_classes.REFUSED`).
"""

import contextlib
import functools
import importlib.metadata
import inspect
import io
import logging
import random
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scl_ray import attribution
from scl_ray.attribution import Batch
from scl_ray.attribution.registry import PROTOCOL, Parameter, one_of, positive_integer
from scl_ray.metrics.metric import Metric
from scl_ray.metrics.quantus_classes import CHOICES, CLASSES, DIRECTIONS, FACETS, REFUSED, REVERSED_BY, WITHHELD, Class
from scl_ray.metrics.undefined import FLAT

PREFIX = "quantus:"

# Raised when the adapter gives other values for the same Quantus.
VERSION = 1


def metrics_like(name: str) -> Mapping[str, Metric]:
    """The metrics that a name with `PREFIX` may mean. Raises ValueError, in one sentence, for one that is refused."""
    if reason := REFUSED.get(name.removeprefix(PREFIX)):
        raise ValueError(f"{name} cannot be had: {reason}")
    return _metrics()


@functools.cache
def _metrics() -> dict[str, Metric]:
    with _quiet(), _seeded(0):
        import quantus  # takes seconds, so only when it is wanted
    return {f"{PREFIX}{name}": _metric(quantus, name, known) for name, known in CLASSES.items()}


def _metric(quantus: ModuleType, name: str, known: Class) -> Metric:
    kind = getattr(quantus, name)
    installed = importlib.metadata.version("quantus")
    release = re.findall(r"\d+", installed)[:3]

    def passes(batch: Batch, maps: Mapping[str, Tensor], spec: str, **parameters: Any) -> dict[str, Tensor]:
        given = {key: value for key, value in parameters.items() if key != "protocol"}
        return {method: _values(kind, known, batch, method, found, spec, given) for method, found in maps.items()}

    def cost(methods: list[str], image_size: int, parameters: Mapping[str, Any]) -> int:
        predictions, explanations = known.cost(parameters, image_size)
        each = sum(attribution.cost([method], image_size) for method in methods) if explanations else 0
        return len(methods) * predictions + explanations * each

    return Metric(
        lambda batch, maps, values, **parameters: values,
        passes=passes,
        cost=cost,
        needs=known.needs,
        parameters={"protocol": PROTOCOL, **_parameters(kind)},
        undefined=(*FLAT, "empty mask") if "masks" in known.needs else FLAT,
        facet=FACETS.get(name, FACETS[kind.evaluation_category.name]),
        direction=DIRECTIONS.get(name, kind.score_direction.name.lower()),
        reversed_by=REVERSED_BY.get(name),
        range=known.range,
        citation=f"{kind.name} of Quantus {installed}: Hedström et al., JMLR 24, 2023",
        version=int("".join(f"{int(part):03}" for part in (VERSION, *release))),
    )


def _parameters(kind: type) -> dict[str, Parameter]:
    """The scalar parameters of the constructor of a Quantus class, by inspection."""
    found = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        default = parameter.default
        if name in WITHHELD or (kind.__name__, name) in WITHHELD:
            continue
        if name in CHOICES:
            found[name] = one_of(default, *(choice for choice in CHOICES[name] if choice != default))
        elif isinstance(default, bool):
            found[name] = Parameter(default, lambda value: isinstance(value, bool), "true or false")
        elif name == "seed":
            found[name] = Parameter(default, lambda value: type(value) is int and value >= 0, "a whole number from 0")
        elif isinstance(default, int):
            found[name] = positive_integer(default)
        elif isinstance(default, float):
            found[name] = Parameter(default, _is_number, "a number")
        elif "Optional[float]" in str(parameter.annotation):
            found[name] = Parameter(default, lambda value: value is None or _is_number(value), "a number or null")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


class _RefusedMap(Exception):
    """Quantus does not take a map."""


def _values(
    kind: type, known: Class, batch: Batch, method: str, maps: Tensor, spec: str, parameters: dict[str, Any]
) -> Tensor:
    """The values (N,) float64 of the *maps* (N,H,W) of one *method*."""
    if kind.__name__ == "RandomLogit":
        parameters = {**parameters, "num_classes": batch.scores(batch.images[:1]).shape[1]}
    ids = list(range(len(maps))) if batch.image_ids is None else [int(image_id) for image_id in batch.image_ids]
    found = []
    for index, stream in enumerate(batch.generators(spec)):
        one = slice(index, index + 1)
        masks = batch.masks[one] if batch.masks is not None and "masks" in known.needs else None
        alone = batch.but(images=batch.images[one], targets=batch.targets[one], image_ids=ids[one], masks=masks)
        seed = int(stream.integers(2**32))
        with _quiet(), _seeded(seed):
            try:
                value = _value(kind, alone, method, _array(maps[one]), seed, parameters)
            except _RefusedMap:
                value = float("nan")
            except (AssertionError, ValueError, IndexError) as error:
                raise ValueError(f"{spec}: {' '.join(str(error).split())}") from error
        found.append(value)
    return torch.tensor(found, dtype=torch.float64, device=maps.device)


def _value(kind: Any, alone: Batch, method: str, given: np.ndarray, seed: int, parameters: Mapping[str, Any]) -> float:
    """What Quantus says of one image and its map (1,1,H,W)."""
    if kind.__name__ == "RandomLogit":
        parameters = {**parameters, "seed": seed}
    if kind.__name__ == "IROF":
        parameters = {**parameters, "perturb_func": _replace_by_mask}
    accepted = inspect.signature(kind).parameters
    silent = {"disable_warnings": True, "display_progressbar": False, "return_aggregate": False}
    metric = kind(**parameters, **{key: value for key, value in silent.items() if key in accepted})
    scores = metric(
        model=alone.model,
        x_batch=alone.images.detach().cpu().numpy().copy(),
        y_batch=alone.targets.cpu().numpy(),
        a_batch=_accepted(given),
        s_batch=None if alone.masks is None else alone.masks[:, None].cpu().numpy(),
        channel_first=True,
        explain_func=functools.partial(_explain, alone, method),
        device=str(alone.images.device),
    )
    if hasattr(metric, "get_auc_score"):
        return float(metric.get_auc_score)
    if isinstance(scores, dict):
        return float(np.mean([similar for layer, (similar,) in scores.items() if layer != "original"]))
    (score,) = scores
    return float(score)


def _explain(
    alone: Batch, method: str, model: nn.Module, inputs: np.ndarray, targets: np.ndarray, **device: str
) -> np.ndarray:
    """The maps (1,1,H,W) by *method* of *inputs* (1,C,H,W) that Quantus made of the image and maybe the model."""
    batch = alone.but(
        images=torch.as_tensor(inputs, dtype=torch.float32, device=alone.images.device),
        targets=torch.as_tensor(targets, device=alone.targets.device),
    )
    if model is not alone.model:
        # The layer at the same place in Quantus' copy of the network.
        named = {module: name for name, module in alone.model.named_modules()}
        layer = None if alone.layer is None else model.get_submodule(named[alone.layer])
        batch = batch.but(model=model, layer=layer)
    with torch.enable_grad():
        return _accepted(_array(attribution.explain_many(batch, [method])[method]))


def _array(maps: Tensor) -> np.ndarray:
    array: np.ndarray = maps.detach().double().cpu().numpy()[:, None]
    return array


def _accepted(maps: np.ndarray) -> np.ndarray:
    """A copy of *maps*, which Quantus may change. Raises _RefusedMap for one that it would refuse to take."""
    if not np.isfinite(maps).all() or maps.min() == maps.max() or maps.max() < 0:
        raise _RefusedMap
    return maps.copy()


def _replace_by_mask(arr: np.ndarray, mask: np.ndarray, **settings: Any) -> np.ndarray:
    from quantus.functions.perturb_func import baseline_replacement_by_mask

    return baseline_replacement_by_mask(arr=arr, mask=np.broadcast_to(mask, arr.shape), **settings)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Quantus' prints and warnings, with the names that NumPy has taken away, and without what it leaves."""
    names = {"trapz": np.trapezoid, "NaN": np.nan}
    missing = {name: value for name, value in names.items() if not hasattr(np, name)}
    # Without a handler, Quantus' first message would give the whole process one, on the standard error.
    handler = logging.NullHandler()
    logging.getLogger().addHandler(handler)
    for name, value in missing.items():
        setattr(np, name, value)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name in missing:
            delattr(np, name)
        logging.getLogger().removeHandler(handler)
        _forget_models()


def _forget_models() -> None:
    """Empty the caches of Quantus' methods, which keep every network that they were ever called with."""
    if "quantus" in sys.modules:
        from quantus.helpers.model.pytorch_model import PyTorchModel

        for attribute in vars(PyTorchModel).values():
            if hasattr(attribute, "cache_clear"):
                attribute.cache_clear()


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """With all global random numbers drawn from *seed*, and as they were afterwards."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  # Quantus draws from the global state
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
