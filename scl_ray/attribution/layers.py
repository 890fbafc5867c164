"""The layer that a CAM explains: found by running the network once."""

import torch
from torch import Tensor, nn


def cam_layer(model: nn.Module, image: Tensor) -> nn.Module:
    """The last block whose output feeds the global pooling: ``layer4[-1]`` of a ResNet, not its last convolution.

    ``model.cam_layer`` where the model names it; otherwise found from a forward pass of *image* (1,C,H,W).
    Raises ValueError for a network that pools no feature maps: one of tokens, or of fully connected layers.
    """
    named = getattr(model, "cam_layer", None)
    if isinstance(named, nn.Module):
        return named
    blocks: list[nn.Module] = []
    maps: Tensor | None = None
    convolved = squeezed = False

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        nonlocal maps, convolved, squeezed
        if not isinstance(output, Tensor):
            return
        convolution = isinstance(module, nn.Conv2d)
        convolved |= convolution
        before = inputs[0] if inputs and isinstance(inputs[0], Tensor) else output
        single = output.shape[-2:] == (1, 1)
        shrunk = single and before.shape[-2:] != (1, 1)
        squeezed = single and (squeezed or (shrunk and isinstance(module, nn.MaxPool2d)))
        if output.ndim == 3 or (convolution and (shrunk or squeezed)) or (shrunk and output.numel() == before.numel()):
            # Tokens, or maps of 1x1 that a convolution made or went on from, or that had their channels last: what is
            # pooled at the end is no map of the image.
            maps = None
        elif output.ndim == 4 and convolved and not isinstance(module, _NO_BLOCK) and output.shape[-2:] != (1, 1):
            if output is not maps:
                blocks.clear()
                maps = output
            blocks.append(module)

    handles = [module.register_forward_hook(watch) for module in model.modules() if module is not model]
    try:
        with torch.no_grad():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    if maps is None:
        raise ValueError(
            f"a CAM needs feature maps that the network pools, and {type(model).__name__} has none for images of "
            f"{image.shape[-2]}x{image.shape[-1]} pixels; name the layer, or use a gradient method"
        )
    # A ReLU, its block and the stage around the block return the same tensor, innermost first: take the block, but none
    # from before the last layer, which may have worked in place.
    innermost = max(index for index, block in enumerate(blocks) if not any(block.children()) or index == 0)
    around = blocks[innermost:]
    return next((block for block in around if type(block) is not nn.Sequential and any(block.children())), around[0])


_NO_BLOCK = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Dropout, nn.Identity)
