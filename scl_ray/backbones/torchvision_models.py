"""torchvision's classifiers without their last layer: images (N, 3, S, S) to what it would read, features (N, d)."""

from types import MethodType
from typing import Any

from torch import nn

from scl_ray.backbones import maps
from scl_ray.backbones.stem import SMALL, stem
from scl_ray.config import InputError

# All that torchvision.models.list_models(module=torchvision.models) lists.
NAMES = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
    "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2", "alexnet", "convnext_tiny", "convnext_small",
    "convnext_base", "convnext_large", "densenet121", "densenet161", "densenet169", "densenet201", "efficientnet_b0",
    "efficientnet_b1", "efficientnet_b2", "efficientnet_b3", "efficientnet_b4", "efficientnet_b5", "efficientnet_b6",
    "efficientnet_b7", "efficientnet_v2_s", "efficientnet_v2_m", "efficientnet_v2_l", "googlenet", "inception_v3",
    "maxvit_t", "mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3", "mobilenet_v2", "mobilenet_v3_small",
    "mobilenet_v3_large", "regnet_x_400mf", "regnet_x_800mf", "regnet_x_1_6gf", "regnet_x_3_2gf", "regnet_x_8gf",
    "regnet_x_16gf", "regnet_x_32gf", "regnet_y_400mf", "regnet_y_800mf", "regnet_y_1_6gf", "regnet_y_3_2gf",
    "regnet_y_8gf", "regnet_y_16gf", "regnet_y_32gf", "regnet_y_128gf", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0",
    "shufflenet_v2_x1_5", "shufflenet_v2_x2_0", "squeezenet1_0", "squeezenet1_1", "swin_t", "swin_s", "swin_b",
    "swin_v2_t", "swin_v2_s", "swin_v2_b", "vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19",
    "vgg19_bn", "vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14",
)  # fmt: skip

# The smallest image, by the beginning of the name; where there is none, any that a configuration may ask for.
_LEAST = {
    "alexnet": 63,
    "convnext": 32,
    "googlenet": 15,
    "inception": 75,
    "squeezenet1_0": 21,
    "squeezenet1_1": 17,
    "vgg": 32,
}
# What the image's side is a multiple of, by name: windows of 7 positions at a 32nd of the resolution, and patches.
_MULTIPLE = {"maxvit_t": 224, "vit_b_16": 16, "vit_b_32": 32, "vit_l_16": 16, "vit_l_32": 32, "vit_h_14": 14}


def build(name: str, image_size: int) -> nn.Module:
    """torchvision's *name*, its last layer replaced by the identity, without auxiliary heads and pretrained weights.

    Below 64 pixels ResNets (ResNeXt, wide ResNets) and DenseNets start with a 3x3 convolution and no pooling; the
    others are as they were published. What d is, and whether dropout precedes the features, is the model's own affair:
    d is 512 of ResNet-18, 2048 of ResNet-50, 768 of ViT-B and Swin-T. Raises InputError for an image that does not fit.
    """
    _must_fit(name, image_size)
    from torchvision import models

    return without_head(models.get_model(name, weights=None, **_arguments(name, image_size)), image_size)


def without_head(network: Any, image_size: int) -> nn.Module:
    """*network*, a classifier of torchvision's, changed to what `build` gives for images of *image_size* pixels."""
    from torchvision import models

    if isinstance(network, models.ResNet):
        network.conv1, network.maxpool = stem(64, image_size)
    elif isinstance(network, models.DenseNet) and image_size < SMALL:
        features = network.features
        features.conv0, features.pool0 = stem(features.conv0.out_channels, image_size)
        nn.init.kaiming_normal_(features.conv0.weight)  # as all its convolutions
    elif isinstance(network, models.VisionTransformer):
        side = image_size // network.patch_size
        last = f"encoder.layers.encoder_layer_{len(network.encoder.layers) - 1}"
        maps.insert(network, f"{last}.ln_1", maps.TokenMaps(1, (side, side)))
    elif isinstance(network, models.SwinTransformer):
        network.cam_layer = network.permute
    elif isinstance(network, models.MNASNet):
        # Its own way of loading weights asks which version of MNASNet wrote them, which a plain mapping does not say.
        network._load_from_state_dict = MethodType(nn.Module._load_from_state_dict, network)
    network.set_submodule(_last_layer(network), nn.Identity())
    backbone: nn.Module = network
    return backbone


def _must_fit(name: str, image_size: int) -> None:
    least = next((size for beginning, size in _LEAST.items() if name.startswith(beginning)), 1)
    if image_size < least:
        raise InputError(f"grid.backbone: {name} takes images of {least}x{least} pixels and larger, not {image_size}x"
                         f"{image_size}; raise dataset.image_size or choose another backbone")  # fmt: skip
    multiple = _MULTIPLE.get(name, 1)
    if image_size % multiple:
        next_size = -(-image_size // multiple) * multiple
        raise InputError(f"grid.backbone: {name} takes images whose side is a multiple of {multiple} pixels, not "
                         f"{image_size}x{image_size}; set dataset.image_size to {next_size} or choose another "
                         "backbone")  # fmt: skip


def _arguments(name: str, image_size: int) -> dict[str, Any]:
    match name.partition("_")[0]:
        case "googlenet" | "inception":
            return {"aux_logits": False, "init_weights": True}
        case "vit":
            return {"image_size": image_size}
        case "maxvit":
            return {"input_size": (image_size, image_size)}
    return {}


def _last_layer(network: nn.Module) -> str:
    """The path of the layer that makes class scores."""
    linear = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    # SqueezeNet's makes maps of class scores and pools these; without it, the maps before it are pooled.
    return linear[-1] if linear else "classifier.1"
