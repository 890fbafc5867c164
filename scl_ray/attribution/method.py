"""What a method of the registry is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from scl_ray.attribution import registry
from scl_ray.attribution.registry import PROTOCOL, TARGET, Parameter


@dataclass(frozen=True)
class Method:
    """An attribution method.

    function: called as ``function(forward, gradients, **parameters)`` when it *needs* something of the batch's shared
      passes ("activations", "activation_gradients", "input_gradients"), else as
      ``function(question, spec, **parameters)``, where *spec* seeds what is drawn; gives maps (N,H,W). ``target`` is
      not among the parameters: the question is what came of it.
    class_discriminative: whether the map depends on the class that is explained.
    version: raised when the definition changes, so that stored scores are computed again.
    cost: forward passes an image takes beyond the shared ones, a backward counting two, by the parameters and the side
      of the image in pixels.
    serves: called as ``serves(question, **parameters)`` about one image before any work starts; raises ValueError when
      the network is not one that the method can explain. Methods that only need the shared passes are tried instead.
    """

    function: Callable[..., Tensor]
    class_discriminative: bool
    citation: str
    needs: frozenset[str] = frozenset()
    parameters: Mapping[str, Parameter] = field(default_factory=lambda: {"protocol": PROTOCOL, "target": TARGET})
    version: int = 1
    cost: Callable[[Mapping[str, Any], int], int] = lambda parameters, image_size: 0
    serves: Callable[..., None] | None = None

    @property
    def defaults(self) -> dict[str, Any]:
        return registry.defaults(self)
