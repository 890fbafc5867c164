import copy

import numpy as np
import pytest
import torch
from pytorch_grad_cam import AblationCAM, ScoreCAM, base_cam
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from scl_ray.attribution import Batch, ask, explain, explain_many
from scl_ray.attribution.cam import unit_range


class Joined(nn.Module):
    """What follows the first maps joins them with others of the image, so that no one image may stand for several."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.readout = nn.Conv2d(3, 5, 3), nn.Conv2d(3, 4, 3), nn.Linear(9, 10)

    def forward(self, images):
        maps = torch.cat([self.first(images), self.second(images)], 1)
        return self.readout(maps.tanh().mean((2, 3)))


class Broadcast(Joined):
    """The same with a sum, which broadcasts."""

    def forward(self, images):
        maps = self.first(images) * self.second(images).mean(1, keepdim=True)
        return self.readout(nn.functional.pad(maps.tanh().mean((2, 3)), (0, 4)))


@pytest.fixture
def resized_by_torch(monkeypatch):
    def scale(maps, size=None):
        maps = unit_range(torch.from_numpy(maps))
        if size is not None:
            maps = nn.functional.interpolate(maps[:, None], size[::-1], mode="bilinear")[:, 0]
        return maps.numpy()

    monkeypatch.setattr(base_cam, "scale_cam_image", scale)


@pytest.mark.usefixtures("resized_by_torch")
@pytest.mark.parametrize("where", ["cam_layer", "layer2"])
def test_score_cam_equals_grad_cam_library(network, colour, targets, where):
    layer = network.cam_layer if where == "cam_layer" else network.backbone.layer2
    wanted = [ClassifierOutputTarget(int(target)) for target in targets[:4]]
    theirs = ScoreCAM(network, [layer])(colour, wanted)
    assert np.abs(explain(network, colour, targets[:4], "score_cam", layer=layer).numpy() - theirs).max() < 1e-5


@pytest.mark.usefixtures("resized_by_torch")
@pytest.mark.parametrize("where", ["cam_layer", "layer2"])
def test_ablation_cam_equals_grad_cam_library(network, colour, targets, where):
    theirs_of = copy.deepcopy(network)  # it takes the layer out of the network for a while
    layers = {network: network.cam_layer, theirs_of: theirs_of.cam_layer}
    if where == "layer2":
        layers = {model: model.backbone.layer2 for model in layers}
    with torch.no_grad():
        scores = network(colour)
    for classes in (scores.argmax(1), scores.argmin(1)):
        wanted = [ClassifierOutputTarget(int(k)) for k in classes]
        theirs = AblationCAM(theirs_of, [layers[theirs_of]])(colour, wanted)
        published = explain(network, colour, classes, "ablation_cam", layer=layers[network], protocol="published")
        assert np.abs(published.numpy() - theirs).max() < 1e-5
        # Divided by a negative score the map is turned over.
        corrected = explain(network, colour, classes, "ablation_cam", layer=layers[network])
        same = (corrected - published).abs().amax((1, 2)) < 1e-5
        assert torch.equal(same, scores.gather(1, classes[:, None])[:, 0] > 0)


@pytest.mark.parametrize("kind", [Joined, Broadcast])
def test_ablation_cam_of_any_network_is_the_formula(colour, kind):
    torch.manual_seed(0)
    network = kind().eval()
    classes = torch.tensor([1, 5, 7, 2])
    exact, images = copy.deepcopy(network).double(), colour.double()
    weights = torch.empty(4, 5, dtype=torch.float64)
    with torch.no_grad():
        maps = exact.first(images)
        for n in range(4):
            whole = exact(images[n : n + 1])[0, classes[n]]
            for k in range(5):
                handle = exact.first.register_forward_hook(
                    lambda module, inputs, output, k=k: output * (torch.arange(5) != k).view(-1, 1, 1)
                )
                weights[n, k] = whole - exact(images[n : n + 1])[0, classes[n]]
                handle.remove()
    wanted = (weights[..., None, None] * maps).sum(1).relu()
    wanted = unit_range(nn.functional.interpolate(wanted[:, None], colour.shape[-2:], mode="bilinear")[:, 0])
    ours = explain_many(Batch(network, colour, classes, layer=network.first, at_once=3), ["ablation_cam"])
    assert (ours["ablation_cam"] - wanted).abs().max() < 1e-5
    assert not network.first._forward_hooks


def test_ablation_cam_runs_only_what_follows_the_layer(network, colour, targets):
    before, after = [], []
    with (
        network.backbone.layer1.register_forward_hook(lambda module, inputs, output: before.append(len(output))),
        network.readout.register_forward_hook(lambda module, inputs, output: after.append(len(output))),
    ):
        explain(network, colour, targets[:4], "ablation_cam")
    assert sum(after) >= 4 * 64
    assert sum(before) <= 4 * 3


@pytest.mark.parametrize("target", ["prototype", "label_free", "corpus"])
def test_score_cam_of_other_targets_is_the_formula(network, images, targets, target):
    reference, labels = images[8:], targets[8:]
    batch = Batch(network, images[:2], labels[:2], reference=reference, reference_labels=labels, at_once=9)
    question = ask(batch, target)
    kept = []
    with torch.no_grad():
        with network.cam_layer.register_forward_hook(lambda module, inputs, output: kept.append(output)):
            question.network(batch.images)
        wanted = []
        for n, maps in enumerate(kept[0]):
            scores = []
            for one in maps:
                mask = nn.functional.interpolate(one[None, None], (32, 32), mode="bilinear", align_corners=True)
                mask = (mask - mask.min()) / (mask.max() - mask.min() + 1e-8)
                scores.append((question.network(batch.images[n : n + 1] * mask)[0] * question.weights[n]).sum())
            wanted.append((torch.stack(scores).softmax(0).view(-1, 1, 1) * maps).sum(0))
    wanted = nn.functional.interpolate(torch.stack(wanted).relu()[:, None], (32, 32), mode="bilinear")[:, 0]
    ours = explain_many(batch, [f"score_cam[target={target}]"])[f"score_cam[target={target}]"]
    assert (ours - unit_range(wanted)).abs().max() < 1e-5


@pytest.mark.parametrize("target", ["class_score", "label_free"])
def test_bfloat16_is_close(network, images, targets, target):
    full, half = (
        explain(network, images[:4], targets[:4], "score_cam", precision=precision, target=target)
        for precision in ("float32", "bfloat16")
    )
    # The softmax makes an error in a logit, about 2^-8 of it, one of the weight.
    assert 0 < (full - half).abs().max() < 0.1


@pytest.mark.parametrize("method", ["score_cam", "ablation_cam"])
def test_they_do_not_depend_on_the_batch(network, images, targets, method):
    together = explain(network, images[:9], targets[:9], method)
    backwards = explain_many(Batch(network, images[:9].flip(0), targets[:9].flip(0), at_once=7), [method])[method]
    assert (together - backwards.flip(0)).abs().max() < 1e-5
    assert (together[3:5] - explain(network, images[3:5], targets[3:5], method)).abs().max() < 1e-5


@pytest.mark.parametrize("method", ["score_cam", "ablation_cam"])
def test_networks_that_pool_no_maps_are_refused_before_any_work(images, targets, method):
    from scl_ray import attribution

    network = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)).eval()
    with pytest.raises(ValueError, match="a CAM needs feature maps that the network pools"):
        attribution.check(Batch(network, images[:1], targets[:1]), [method])
