"""Feature extractors by name, randomly initialised: images (N, 3, S, S) to features (N, d).

torchvision and timm are imported where a network is built: they take seconds, and whoever only reads a configuration
needs neither.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from scl_ray import plugins
from scl_ray.backbones import timm_models, torchvision_models
from scl_ray.backbones.cifar import CifarResNet
from scl_ray.config import InputError

__all__ = ["BACKBONES", "BuildError", "CifarResNet", "build", "cam_layer", "feature_size"]

# Beside these, ``timm:<name>`` is any model of timm, and ``module:callable`` the user's own.
BACKBONES: dict[str, Callable[[int], nn.Module]] = {
    **{f"resnet{depth}": partial(CifarResNet, depth) for depth in (8, 20, 56)},
    **{name: partial(torchvision_models.build, name) for name in torchvision_models.NAMES},
}


class BuildError(RuntimeError):
    """A user's own function for a backbone, or the backbone itself, raised. The message is one clause."""


def build(name: str, image_size: int) -> nn.Module:
    """The backbone *name* for square images of *image_size* pixels: (N, 3, S, S) to features (N, d).

    *name* is one of `BACKBONES`, ``timm:<name>``, or a ``module:callable``, called with the image size, that returns a
    torch module for which `feature_size` holds. Raises InputError where there is none for images of that size, and
    BuildError where the user's own code raises.
    """
    if timm_models.is_timm(name):
        backbone = timm_models.build(name, image_size)
    elif plugins.is_plugin(name):
        return _users_own(name, image_size)
    else:
        return BACKBONES[name](image_size)
    feature_size(backbone, image_size)
    return backbone


def _users_own(name: str, image_size: int) -> nn.Module:
    function = plugins.load(name)
    try:
        backbone = function(image_size)
        if not isinstance(backbone, nn.Module):
            raise InputError(f"grid.backbone: {name} returned {type(backbone).__name__}; return a torch module")
        feature_size(backbone, image_size)
    except InputError:
        raise
    except Exception as error:  # a user's function may raise anything
        raise BuildError(f"{name} raised {type(error).__name__}: {' '.join(str(error).split())}") from error
    return backbone


def cam_layer(backbone: nn.Module) -> nn.Module | None:
    """The module whose output (N, C, h, w) class activation maps are taken from, where *backbone* tells.

    It is the backbone's ``cam_layer`` or, as in torchvision's ResNets, the last block of its ``layer4``. None where it
    is yet to be found by a forward pass, as `scl_ray.attribution.layers.cam_layer` does.
    """
    layer = getattr(backbone, "cam_layer", None)
    if layer is None and isinstance(stage := getattr(backbone, "layer4", None), nn.Sequential):
        layer = stage[-1]
    return layer if isinstance(layer, nn.Module) else None


@torch.no_grad()
def feature_size(backbone: nn.Module, image_size: int) -> int:
    """Number d of features that *backbone* makes of an image.

    Raises InputError when its output is not (N, d), or it has no weights to train.
    """
    training = backbone.training
    weight = next(backbone.parameters(), None)
    if weight is None:
        raise InputError(f"backbone {type(backbone).__name__}: has no weights; return a module that can be trained")
    device = weight.device
    features = backbone.eval()(torch.zeros(2, 3, image_size, image_size, device=device))
    backbone.train(training)
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 2:
        kind = tuple(features.shape) if isinstance(features, Tensor) else f"a {type(features).__name__}"
        raise InputError(f"backbone {type(backbone).__name__}: turns 2 images into {kind}; return features (N, d)")
    return int(features.shape[1])
