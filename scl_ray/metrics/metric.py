"""What a metric of the registry is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from scl_ray.attribution import registry
from scl_ray.attribution.registry import PROTOCOL, Parameter
from scl_ray.metrics.undefined import FLAT


@dataclass(frozen=True)
class Metric:
    """A metric of attribution maps.

    function: ``function(batch, maps, passed, **parameters)`` gives the values (N,), where *passed* is what `passes`
      gave for the method, or None.
    passes: the part that runs the network, ``passes(batch, {method: maps}, spec, **parameters)`` for all methods at
      once, where *spec* seeds what is drawn; metrics with the same passes and parameters share one run, and draw by the
      spec of the first of them in the registry. cost: its forward passes an image,
      ``cost(methods, image_size, parameters)``; raises ValueError for parameters that do not suit the size.
    after_passes: the parameters that only `function` and `curve` read: the passes do not get them, and share one run
      whatever their values.
    facet: what quality it measures. direction: "lower" or "higher" is better. range: of its values.
    reversed_by: the parameter and its value that turn the direction round.
    needs: "masks" of the objects, a "class" that the method explains, "re-explanation" by the same method, "reference"
      images.
    undefined: the cases of `scl_ray.metrics.undefined.CASES` in which it has no value.
    curve: for metrics that sum up a curve, what gives a value per step (N,steps), ``curve(passed, **parameters)``.
    version: raised when the definition changes, so that stored scores are computed again.
    serves: called with a batch of one image and the parameters before any work starts; raises ValueError when the
      network is not one that the metric can be computed for.
    """

    function: Callable[..., Tensor]
    facet: str
    direction: str
    range: tuple[float, float]
    citation: str
    needs: frozenset[str] = frozenset()
    passes: Callable[..., Mapping[str, Any]] | None = None
    after_passes: frozenset[str] = frozenset()
    cost: Callable[[list[str], int, Mapping[str, Any]], int] = lambda methods, image_size, parameters: 0
    undefined: tuple[str, ...] = FLAT
    curve: Callable[..., Tensor] | None = None
    parameters: Mapping[str, Parameter] = field(default_factory=lambda: {"protocol": PROTOCOL})
    reversed_by: tuple[str, Any] | None = None
    version: int = 1
    serves: Callable[..., None] | None = None

    def better(self, parameters: Mapping[str, Any]) -> str:
        """Whether "lower" or "higher" values are better under *parameters*."""
        if self.reversed_by is None or parameters[self.reversed_by[0]] != self.reversed_by[1]:
            return self.direction
        return "higher" if self.direction == "lower" else "lower"

    @property
    def defaults(self) -> dict[str, Any]:
        return registry.defaults(self)
