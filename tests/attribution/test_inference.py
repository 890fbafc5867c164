"""The inference form against the network it was made of."""

import copy

import pytest
import torch
from torch import nn

from scl_ray.attribution import Batch, explain, inference
from scl_ray.checkpoint import ExplainedNetwork
from scl_ray.metrics import score
from scl_ray.readout import ReadOut


@pytest.fixture(scope="module")
def probe(network, images):
    """The trained backbone under a probe on normalised features, with a temperature: a read-out of three operations."""
    weight = torch.randn(10, 64, generator=torch.Generator().manual_seed(0))
    readout = ReadOut(20 * weight, weight.sum(1), normalise=True, temperature=1.7)
    return ExplainedNetwork(network.backbone, readout, weight).eval()


class _Branching(nn.Module):
    """Takes another way for bright images, so it cannot be traced."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images) * (2 if images.mean() > 1e3 else 1)


class _PreActivation(nn.Module):
    """Batch-norm before the convolution, which cannot be folded; the last features are read twice."""

    def __init__(self):
        super().__init__()
        self.norm, self.convolution = nn.BatchNorm2d(3), nn.Conv2d(3, 16, 3)
        self.layers = nn.Sequential(nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
        self.linear = nn.Linear(32, 10)

    def forward(self, images):
        maps = self.layers(self.convolution(self.norm(images)))
        return self.linear(torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1))


@pytest.fixture
def pre_activation(images):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _PreActivation()
        for _ in range(20):
            model(images)  # statistics of real images
    return model.eval()


def difference(found, wanted):
    """The largest, as a share of the largest score."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def plain(model, images):
    with torch.no_grad():
        return model(images)


@pytest.mark.parametrize("at_once", [5, 64])
@pytest.mark.parametrize("name", ["network", "probe", "pre_activation"])
def test_float32_scores_are_the_models(request, images, targets, name, at_once):
    model = request.getfixturevalue(name)
    batch = Batch(model, images, targets, at_once=at_once)
    form = inference.build(model, images, "float32")
    assert form is not model
    batch.kept["float32 form"] = form
    wanted = plain(model, images)
    for given in (images, images.contiguous(memory_format=torch.channels_last), images.mT.contiguous().mT):
        found = batch.scores(given)
        assert found.dtype == torch.float32
        assert difference(found, wanted) < 1e-5  # of the scores' scale: what folding batch-norm rounds otherwise


@pytest.mark.parametrize("name", ["network", "probe", "pre_activation"])
def test_bfloat16_scores_are_near_the_models(request, images, targets, name):
    model = request.getfixturevalue(name)
    found, wanted = Batch(model, images, targets).scores(images, "bfloat16"), plain(model, images)
    assert found.dtype == torch.float32
    # bfloat16 rounds to 2^-9 = 0.2 %, and a handful of layers add up.
    assert 0 < difference(found, wanted) < 0.02


def test_the_read_out_is_not_rounded_to_bfloat16(probe, images):
    # Beside a bias of 1000 a score in bfloat16 would be off by up to 2.
    far = ReadOut(probe.readout.weight, probe.readout.bias + 1000, normalise=True)
    model = ExplainedNetwork(probe.backbone, far, probe.prototypes).eval()
    found = inference.build(model, images, "bfloat16")(images)
    assert (found - plain(model, images)).abs().max() < 0.5


def test_a_form_is_made_when_it_pays_and_once(monkeypatch, network, images, targets):
    made = []
    build = inference.build
    monkeypatch.setattr(inference, "build", lambda *given: made.append(given[2]) or build(*given))
    batch = Batch(network, images, targets)
    other = batch.but(targets=targets.flip(0))
    for _ in range(inference.WORTHWHILE // len(images) - 1):
        assert torch.equal(batch.scores(images), plain(network, images))
    assert made == []
    for context in (batch, other, batch):
        context.scores(images)
    assert made == ["float32"]
    for context in (batch, other):
        context.scores(images, "bfloat16")
    assert made == ["float32", "bfloat16"]
    assert not batch.but(model=copy.deepcopy(network)).kept


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_later_call_sees_what_became_of_the_model(network, images, targets, precision):
    changing = copy.deepcopy(network)
    many = images.repeat(10, 1, 1, 1)
    before = Batch(changing, images, targets).scores(many, precision)
    with torch.no_grad():
        changing.backbone.conv1.weight.mul_(0.5)
    after = Batch(changing, images, targets).scores(many, precision)
    assert difference(before, after) > 0.1
    assert difference(after[: len(images)], plain(changing, images)) < 0.02


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_model_and_the_images_stay_as_they_were(network, images, targets, precision):
    weights, given = copy.deepcopy(network.state_dict()), images.clone()
    strides = network.backbone.conv1.weight.stride()
    Batch(network, images, targets).scores(images.repeat(10, 1, 1, 1), precision)
    assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert network.backbone.conv1.weight.stride() == strides
    assert torch.equal(images, given)


def test_what_cannot_be_traced_runs_as_it_is(network, images, targets):
    model = _Branching(network).eval()
    assert inference.build(model, images, "float32") is model
    found = Batch(model, images, targets).scores(images, "bfloat16")
    assert 0 < difference(found, plain(model, images)) < 0.02


def test_what_folding_changes_runs_as_it_is(monkeypatch, network, images):
    def wrong(model):
        network = inference_folded(model)
        with torch.no_grad():
            network.backbone.conv1.weight.mul_(1.001)
        return network

    inference_folded = inference.folded
    monkeypatch.setattr(inference, "folded", wrong)
    assert inference.build(network, images, "float32") is network


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_hooks_of_the_user_see_every_pass(network, images, targets, precision):
    seen = []
    with network.backbone.layer1.register_forward_hook(lambda module, inputs, output: seen.append(len(output))):
        Batch(network, images, targets).scores(images.repeat(10, 1, 1, 1), precision)
    assert sum(seen) >= 10 * len(images)


def test_pixel_flipping_in_bfloat16(network, images, targets):
    maps = explain(network, images, targets, "grad_cam")
    exact, rough = (
        score("pixel_flipping_auc", network, images, targets, maps, precision=precision)
        for precision in ("float32", "bfloat16")
    )
    # What the mean over the images is good to; a single image may be off by 0.01.
    assert 0 < (exact - rough).abs().mean() < 2e-3
    assert (exact - rough).abs().max() < 0.02
