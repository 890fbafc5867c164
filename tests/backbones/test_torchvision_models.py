"""torchvision's classifiers: each by its name, whole but for its last layer, at every size that it takes."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import get_model

from scl_ray import backbones
from scl_ray.attribution.layers import cam_layer
from scl_ray.backbones import torchvision_models
from scl_ray.checkpoint import Checkpoint, from_files, to_files
from scl_ray.config import InputError

# The smallest of each family: what its paper's last layer reads, the layer of CAMs, and the maps there.
FAMILIES = {
    "resnet18": (64, 512, "layer4.1", (512, 2, 2)),
    "resnet50": (64, 2048, "layer4.2", (2048, 2, 2)),
    "resnext50_32x4d": (64, 2048, "layer4.2", (2048, 2, 2)),
    "wide_resnet50_2": (64, 2048, "layer4.2", (2048, 2, 2)),
    "alexnet": (95, 4096, "features.12", (256, 2, 2)),
    "convnext_tiny": (64, 768, "features.7.2", (768, 2, 2)),
    "densenet121": (64, 1024, "features.norm5", (1024, 2, 2)),
    "efficientnet_b0": (64, 1280, "features.8", (1280, 2, 2)),
    "efficientnet_v2_s": (64, 1280, "features.7", (1280, 2, 2)),
    "googlenet": (64, 1024, "inception5b", (1024, 2, 2)),
    "inception_v3": (107, 2048, "Mixed_7c", (2048, 2, 2)),
    "maxvit_t": (224, 512, "blocks.3.layers.1.layers.grid_attention", (512, 7, 7)),
    "mnasnet0_5": (64, 1280, "layers.16", (1280, 2, 2)),
    "mobilenet_v2": (64, 1280, "features.18", (1280, 2, 2)),
    "mobilenet_v3_small": (64, 1024, "features.12", (576, 2, 2)),
    "shufflenet_v2_x0_5": (64, 1024, "conv5.2", (1024, 2, 2)),
    "squeezenet1_1": (64, 512, "classifier.2", (512, 3, 3)),
    "swin_t": (64, 768, "permute", (768, 2, 2)),
    "swin_v2_t": (64, 768, "permute", (768, 2, 2)),
    "vgg11": (64, 4096, "features.20", (512, 2, 2)),
    "vit_b_32": (64, 768, "encoder.layers.encoder_layer_11.ln_1.1.maps", (768, 2, 2)),
}


def test_every_classifier_has_its_name():
    listed = torchvision.models.list_models(module=torchvision.models)
    assert sorted(torchvision_models.NAMES) == sorted(listed)
    assert set(listed) < set(backbones.BACKBONES)


@pytest.mark.parametrize("name", FAMILIES)
def test_features_and_cam_layer(name):
    size, features, path, maps = FAMILIES[name]
    with torch.device("meta"):
        backbone = backbones.build(name, size).eval()
        images = torch.empty(1, 3, size, size)
        layer = backbones.cam_layer(backbone) or cam_layer(backbone, images)
        seen = []
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
        assert backbone(images).shape == (1, features)
    assert layer is backbone.get_submodule(path)
    assert seen[0].shape[1:] == maps


def test_regnets_layer_is_its_last_block():
    """Of the families, the one that cannot be built without weights."""
    backbone = backbones.build("regnet_x_400mf", 64).eval()
    assert backbones.feature_size(backbone, 64) == 400
    assert cam_layer(backbone, torch.zeros(1, 3, 64, 64)) is backbone.trunk_output.block4[-1]


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet18", 64), ("mobilenet_v3_small", 32), ("shufflenet_v2_x0_5", 32), ("swin_t", 32), ("vit_b_32", 32),
     ("regnet_y_400mf", 32)],
)  # fmt: skip
def test_features_are_what_torchvisions_last_layer_reads(name, size):
    own = {"image_size": size} if name == "vit_b_32" else {}
    theirs, ours = get_model(name, weights=None, **own).eval(), backbones.build(name, size).eval()
    last = [module for module in theirs.modules() if isinstance(module, nn.Linear)][-1]
    assert last.out_features == 1000
    names = {tensor: tensor.replace("11.ln_1.", "11.ln_1.0.") for tensor in theirs.state_dict()}
    lacking, over = ours.load_state_dict({names[key]: t for key, t in theirs.state_dict().items()}, strict=False)
    assert not lacking
    assert len(over) == len(last.state_dict())
    read = []
    last.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        theirs(images)
        features = ours(images)
    assert torch.equal(features, read[0])


def test_squeezenets_features_are_its_last_maps_pooled():
    backbone = backbones.build("squeezenet1_1", 32).eval()
    with torch.no_grad():
        images = torch.randn(2, 3, 32, 32)
        features, maps = backbone(images), backbone.features(images)
    assert torch.allclose(features, maps.mean((2, 3)), atol=1e-6)  # float32, whichever order it adds up in


@pytest.mark.parametrize(("name", "size"), [("resnet18", 32), ("resnet18", 64), ("resnet50", 32)])
def test_a_seed_draws_the_weights_that_it_always_drew(name, size):
    torch.manual_seed(3)
    ours = backbones.build(name, size).state_dict()
    torch.manual_seed(3)
    theirs = get_model(name, weights=None)
    theirs.conv1 = nn.Conv2d(3, 64, 3 if size < 64 else 7, bias=False)
    theirs = {key: tensor for key, tensor in theirs.state_dict().items() if not key.startswith("fc.")}
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("name", ["resnet18", "wide_resnet50_2", "densenet121"])
@pytest.mark.parametrize(("size", "map_size"), [(28, 4), (32, 4), (63, 8), (64, 2), (224, 7)])
def test_the_stem_fits_the_image(name, size, map_size):
    if name == "densenet121":
        map_size = size // 8 if size < 64 else map_size  # its poolings round down
    with torch.device("meta"):
        backbone = backbones.build(name, size).eval()
        layer, seen = backbone.layer4 if hasattr(backbone, "layer4") else backbone.features, []
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
        backbone(torch.empty(1, 3, size, size))
    assert seen[0].shape[-1] == map_size


@pytest.mark.parametrize(
    ("name", "least"),
    [("alexnet", 63), ("convnext_tiny", 32), ("googlenet", 15), ("inception_v3", 75), ("squeezenet1_0", 21),
     ("squeezenet1_1", 17), ("vgg11", 32)],
)  # fmt: skip
def test_an_image_that_is_too_small_is_refused(name, least):
    with pytest.raises(InputError, match=f"grid.backbone: {name} takes images of {least}x{least} pixels and larger"):
        backbones.build(name, least - 1)
    with torch.device("meta"):
        backbone = backbones.build(name, least).eval()
        assert backbone(torch.empty(1, 3, least, least)).ndim == 2
        with pytest.raises(RuntimeError):  # torchvision's own limit, not only ours
            backbone(torch.empty(1, 3, least - 1, least - 1))


@pytest.mark.parametrize(
    ("name", "size", "right"), [("vit_b_16", 40, 48), ("vit_h_14", 225, 238), ("maxvit_t", 96, 224)]
)
def test_an_image_that_its_patches_do_not_divide_is_refused(name, size, right):
    with pytest.raises(InputError, match=f"not {size}x{size}; set dataset.image_size to {right} or choose another"):
        backbones.build(name, size)


@pytest.mark.parametrize(("name", "size"), [("mnasnet0_5", 32), ("mobilenet_v3_small", 32), ("swin_t", 32)])
def test_every_weight_is_trained_and_comes_back_from_a_checkpoint(name, size):
    backbone = backbones.build(name, size).train()
    features = backbone(torch.randn(2, 3, size, size))
    features.square().sum().backward()
    assert [key for key, weight in backbone.named_parameters() if weight.grad is None] == []
    weight = torch.randn(2, features.shape[1])
    point = Checkpoint(name, backbone.eval(), "own_layer", weight, torch.zeros(2), 1.0, weight.sign(), ("a", "b"), size,
                       (0.5,) * 3, (0.25,) * 3)  # fmt: skip
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(from_files(to_files(point)).explained()(images), point.explained()(images))


@pytest.mark.parametrize(
    ("name", "size"), [("googlenet", 32), ("mobilenet_v2", 32), ("squeezenet1_1", 32), ("swin_t", 32)]
)
def test_maps_that_shrank_to_one_position_are_no_maps(name, size):
    with torch.device("meta"):
        arguments = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
        network = get_model(name, weights=None, **arguments).eval()  # names no layer itself
        with pytest.raises(ValueError, match=f"has none for images of {size}x{size} pixels"):
            cam_layer(network, torch.empty(1, 3, size, size))
