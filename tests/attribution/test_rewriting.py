import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

from scl_ray import attribution
from scl_ray.attribution import Batch, ask
from scl_ray.attribution.rewriting import folded, rewritten
from scl_ray.attribution.rules import rewritten as network_of

torch.set_num_threads(1)


def torchvision_model(name, images):
    """One with batch-norm statistics and weights of its own, whose features keep their scale up to the scores."""
    torch.manual_seed(0)
    if name == "vgg11_bn":  # its classifier has 120 million weights, which take seconds
        with torch.device("meta"):
            model = models.vgg11_bn()
        model.features = models.vgg.make_layers(models.vgg.cfgs["A"], batch_norm=True)
        model.classifier = nn.Sequential(nn.Linear(512 * 49, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 10))
    else:
        model = models.get_model(name, weights=None, num_classes=10)
    model.to(images.dtype)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    return model.eval()


class Spelled(nn.Module):
    """ReLUs in every spelling, one of them used twice, two of them over an input that is read again."""

    def __init__(self):
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(6))
        self.relu = nn.ReLU(inplace=True)
        self.last = nn.Linear(3, 4)

    def forward(self, x):
        x = self.relu(self.convolutions[0](x))
        x = self.relu(self.convolutions[1](x))
        x = F.relu(self.convolutions[2](x))
        x = torch.relu(self.convolutions[3](x)).add(1)
        before = self.convolutions[4](x)
        x = F.relu(before, inplace=True) + before
        before = self.convolutions[5](x)
        x = before.relu_() - before * 0.3
        return self.last((x - 0.1).relu().mean((2, 3)))


class Overwriting(nn.Module):
    """Operations that write over what another one has read, which must not see that, and the same without."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        x = self.first(x)
        y = self.second(F.relu(x))
        if self.in_place:
            x += y
            x += 0.1
            x *= 2
        else:
            x = (x + y + 0.1) * 2
        x = F.elu(F.silu(x, inplace=self.in_place), 0.5, self.in_place)
        return self.last(x.mean((2, 3)))


class Unfoldable(nn.Module):
    """Batch-norm that follows no convolution, or one that is read elsewhere too, or is called twice."""

    def __init__(self):
        super().__init__()
        self.first, self.read, self.twice = (nn.BatchNorm2d(3) for _ in range(3))
        self.one, self.two, self.foldable = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.one(self.first(x))
        x = x + self.read(x)
        x = self.two(self.twice(self.two(x)))
        return self.norm(self.foldable(x)).mean((2, 3))


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.convolution(x if x.sum() > 0 else -x).mean((2, 3))


class WritesAlias(Branches):
    def forward(self, x):
        x = self.convolution(x)
        written = x.flatten(1)
        written += 1  # changes x as well, which no graph of operations sees
        return x.mean((2, 3))


def relus(network):
    called = [node.target for node in network.graph.nodes if node.op == "call_module"]
    return [name for name in called if isinstance(network.get_submodule(name), nn.ReLU)]


@pytest.mark.parametrize(
    ("name", "norms", "expected"),
    [("resnet18", 0, 17), ("resnet50", 0, 49), ("vgg11_bn", 0, 9), ("densenet121", 62, 121)],
)
def test_outputs_stay(name, norms, expected):
    # In float64, where two forms of a function differ by nothing else; float32 is for the targets below.
    images = torch.randn(4, 3, 40, 40, generator=torch.Generator().manual_seed(1)).double()
    model = torchvision_model(name, images)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        wanted = model(images)
        assert wanted.std() > 0.01
        for form in (folded(model), rewritten(model)):
            assert (form(images) - wanted).abs().max() < 1e-9
            assert sum(isinstance(module, nn.BatchNorm2d) for module in form.modules()) == norms
            assert not form.training
            for parameter in form.parameters():
                parameter.fill_(torch.nan)  # shares nothing with the original
    assert len(relus(form)) == len(set(relus(form))) == expected
    assert not any(getattr(module, "inplace", False) for module in form.modules())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_every_spelling_of_relu():
    torch.manual_seed(0)
    model, images = Spelled().eval(), torch.randn(2, 3, 9, 9)
    form = rewritten(model)
    assert (form(images) - model(images)).abs().max() < 1e-6
    assert len(relus(form)) == len(set(relus(form))) == 7
    assert model.relu.inplace


@pytest.mark.parametrize("method", ["guided_backprop", "deep_lift", "lrp"])
def test_what_works_in_place_is_explained_as_what_does_not(method, images):
    torch.manual_seed(0)
    models = Overwriting(in_place=True).eval(), Overwriting(in_place=False).eval()
    models[1].load_state_dict(models[0].state_dict())
    maps = [attribution.explain(model, images[:4], torch.tensor([0, 1, 2, 0]), method) for model in models]
    assert maps[1].abs().max() > 1e-4
    assert torch.equal(*maps)


def test_batch_norm_that_cannot_be_folded_stays():
    torch.manual_seed(0)
    model, images = Unfoldable(), torch.randn(4, 3, 9, 9)
    with torch.no_grad():
        model(images + 1)
    form = folded(model.eval())
    assert (form(images) - model(images)).abs().max() < 1e-5
    assert sum(isinstance(module, nn.BatchNorm2d) for module in form.modules()) == 3


@pytest.mark.parametrize("method", ["guided_backprop", "deconvolution", "guided_grad_cam", "deep_lift", "lrp"])
def test_a_network_that_no_graph_describes_is_refused(method, images):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="cannot be traced to a graph of operations"):
        folded(Branches().eval())
    batch = Batch(Branches().eval(), images[:1], torch.tensor([1]))
    with pytest.raises(ValueError, match=f"^{method} cannot explain Branches: the network cannot be traced"):
        attribution.check(batch, [method])
    batch = Batch(WritesAlias().eval(), images[:1], torch.tensor([1]))
    with pytest.raises(ValueError, match=f"^{method} cannot explain WritesAlias: .* gives other outputs"):
        attribution.check(batch, [method])


@pytest.mark.parametrize("target", attribution.TARGETS)
@pytest.mark.parametrize("embeds", [True, False])
def test_the_network_of_every_target_is_rewritten_once(target, embeds, network, images, targets):
    model = network if embeds else torchvision_model("resnet18", images)
    batch = Batch(model, images[:4], targets[:4], reference=images, reference_labels=targets)
    question = ask(batch, target)
    with torch.no_grad():
        wanted = question.network(batch.images)
        assert (network_of(question, "lrp")(batch.images) - wanted).abs().max() < 1e-5 * wanted.abs().max().clamp_min(1)
    kept = dict(batch.kept["rewritten"])
    network_of(ask(batch.but(images=images[4:6], targets=targets[4:6]), target), "lrp")
    assert batch.kept["rewritten"] == kept
    assert len(kept) == 1
