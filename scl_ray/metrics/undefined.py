"""When a metric has no value: the cases, and which of them hold."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from scl_ray.attribution.batch import Batch


def _zero(maps: Tensor) -> Tensor:
    return (maps == 0).all(2).all(1)


def _constant(maps: Tensor) -> Tensor:
    # To the same precision as maps are ranked: 1e-6 of the largest magnitude.
    return maps.amax((1, 2)) - maps.amin((1, 2)) <= 1e-6 * maps.abs().amax((1, 2))


def _infinite(maps: Tensor) -> Tensor:
    return ~maps.isfinite().all(2).all(1)


def _empty_mask(batch: Batch) -> Tensor:
    assert batch.masks is not None
    return ~batch.masks.flatten(1).any(1)


# Each case says of every image of the batch, its map, and the map it is compared with, whether it holds: (N,) bool.
Case = Callable[[Batch, Tensor, Any], Tensor]
CASES: dict[str, Case] = {
    "zero map": lambda batch, maps, changed: _zero(maps),
    "constant map": lambda batch, maps, changed: _constant(maps),
    "infinite map": lambda batch, maps, changed: _infinite(maps),
    "zero changed map": lambda batch, maps, changed: _zero(changed),
    "constant changed map": lambda batch, maps, changed: _constant(changed),
    "infinite changed map": lambda batch, maps, changed: _infinite(changed),
    "empty mask": lambda batch, maps, changed: _empty_mask(batch),
}

# A flat map ranks no pixel above another and cannot be scaled. An infinite result is undefined for every metric.
FLAT = ("zero map", "constant map", "infinite map")
CHANGED = ("zero changed map", "constant changed map", "infinite changed map")


def undefined(cases: Sequence[str], batch: Batch, maps: Tensor, passed: Any, values: Tensor) -> Tensor:
    """Which of a metric's *values* (N,) mean nothing, by its *cases*; (N,) bool."""
    found = ~values.isfinite()
    for case in cases:
        found = found | CASES[case](batch, maps, passed)
    return found
