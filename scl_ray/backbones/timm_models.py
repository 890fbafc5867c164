"""Models of timm (Wightman, PyTorch Image Models, 2019) by ``timm:<name>``, where timm is installed."""

import difflib
from importlib import metadata
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from scl_ray.backbones import maps
from scl_ray.config import InputError

_PREFIX = "timm:"


def is_timm(name: str) -> bool:
    return name.startswith(_PREFIX)


def check(name: str) -> None:
    """Raise InputError, in one sentence, when timm is not installed or has no model of that *name*."""
    known = _timm(name).list_models()
    model = name.removeprefix(_PREFIX)
    if model not in known:
        close = difflib.get_close_matches(model.partition(".")[0], known, n=3)
        fix = f"did you mean {' or '.join(_PREFIX + other for other in close)}?" if close else (
            "timm.list_models() lists what there is")  # fmt: skip
        raise InputError(f"timm {metadata.version('timm')} has no model {model!r}; {fix}")


def version(name: str) -> dict[str, str]:
    """What beside its name decides which network *name* is: timm's version, which may change one; else nothing."""
    return {"timm": metadata.version("timm")} if is_timm(name) else {}


def build(name: str, image_size: int) -> nn.Module:
    """timm's model without its classifier and without pretrained weights: images (N, 3, S, S) to features (N, d).

    Raises InputError when there is none for images of that size.
    """
    check(name)
    network = _created(name, image_size)
    training = network.training
    try:
        with torch.no_grad():
            _show_maps(network.eval(), torch.zeros(1, 3, image_size, image_size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise _unsuitable(name, image_size, error) from error
    return network.train(training)


def _created(name: str, image_size: int) -> nn.Module:
    timm, model = _timm(name), name.removeprefix(_PREFIX)
    try:
        try:
            network: nn.Module = timm.create_model(model, pretrained=False, num_classes=0, img_size=image_size)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            # Convolutional networks take any size, and no such argument.
            network = timm.create_model(model, pretrained=False, num_classes=0)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise _unsuitable(name, image_size, error) from error
    return network


def _unsuitable(name: str, image_size: int, error: Exception) -> InputError:
    own = _timm(name).get_pretrained_cfg(name.removeprefix(_PREFIX))
    made_for = f"{own.input_size[-1]}, for which it was made, " if own else "another "
    reason = " ".join(str(error).split())
    return InputError(f"grid.backbone: {name} does not take images of {image_size}x{image_size} pixels ({reason}); set "
                      f"dataset.image_size to {made_for}or choose another backbone")  # fmt: skip


def _show_maps(network: Any, image: Tensor) -> None:
    """Change *network* where its last maps are tokens or have their channels last, so that CAMs see them.

    image: (1, 3, S, S). The tokens are taken behind the first norm of the last block, as is usual for transformers: in
    what follows, the patches no longer speak to the class token. A network of tokens without such a block is left as it
    is, and has no CAM.
    """
    grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    blocks = getattr(network, "blocks", None)
    if grid is not None and isinstance(blocks, nn.Sequential | nn.ModuleList) and hasattr(blocks[-1], "norm1"):
        norm = f"blocks.{len(blocks) - 1}.norm1"
        tokens = _output(network, norm, image)
        if tokens is not None and tokens.ndim == 3 and tokens.shape[1] >= grid[0] * grid[1]:
            maps.insert(network, norm, maps.TokenMaps(tokens.shape[1] - grid[0] * grid[1], tuple(grid)))
    elif getattr(network, "output_fmt", None) == "NHWC":
        from scl_ray.attribution.layers import cam_layer

        last = cam_layer(network, image)
        path = next(path for path, module in network.named_modules() if module is last)
        maps.insert(network, path, maps.ChannelsLastMaps())
    else:
        network(image)


def _output(network: nn.Module, layer: str, image: Tensor) -> Tensor | None:
    seen: list[Tensor] = []
    handle = network.get_submodule(layer).register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        network(image)
    finally:
        handle.remove()
    return seen[0] if seen and isinstance(seen[0], Tensor) else None


def _timm(name: str) -> ModuleType:
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise InputError(f"{name} needs timm, which is not installed; install it on every machine that trains or "
                         "explains (pip install timm), or choose a backbone of torchvision") from error  # fmt: skip
    found: ModuleType = timm
    return found
