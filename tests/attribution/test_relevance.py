import copy

import captum.attr
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attribution.by_hand import decided_by_a_patch, separated
from torch import nn
from torchvision import models

from scl_ray import attribution, metrics
from scl_ray.attribution import Batch, ask, explain, explain_many
from scl_ray.attribution.lrp import relevances
from scl_ray.attribution.rules import rewritten
from scl_ray.checkpoint import ExplainedNetwork
from scl_ray.readout import ReadOut

METHODS = ["deep_lift", "deep_lift_shap[baselines=3]", "lrp"]

pytestmark = pytest.mark.filterwarnings("ignore:Setting forward, backward hooks", "ignore:Input Tensor 0 did not")


@pytest.fixture(scope="module")
def by_hand(network):
    return separated(network)


@pytest.fixture(scope="module", params=[("resnet18", 96), ("resnet50", 64)])
def large(request):
    """torchvision's own, with max-pooling: the model, images, classes, scores and those of the mean image."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    name, size = request.param
    model = models.get_model(name, weights=None, num_classes=10)
    images = torch.randn(3, 3, size, size) + torch.randn(3, 3, 1, 1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
        scores = model.eval()(images)
        mean = model(torch.zeros(1, 3, size, size))
    targets = scores.argmax(1)
    return model, images, targets, scores.amax(1), mean[0, targets]


def scores_of(model, images, targets, target, **given):
    """The true scores of *images* and of the mean image, by the networks themselves."""
    question = ask(Batch(model, images, targets, **given), target)
    with torch.no_grad():
        return question.score(images, question.weights), question.score(torch.zeros_like(images), question.weights)


def test_deep_lift_equals_captum(network, by_hand, images, targets):
    wanted = captum.attr.DeepLift(by_hand).attribute(images, target=targets).sum(1)
    ours = explain(network, images, targets, "deep_lift")
    assert wanted.abs().max() > 0.01
    assert (ours - wanted.detach()).abs().max() < 1e-5


def test_deep_lift_shap_equals_captum(network, by_hand, images, targets):
    reference = images[8:]
    wanted = captum.attr.DeepLiftShap(by_hand).attribute(images[:4], reference[[0, 8, 16]], target=targets[:4]).sum(1)
    ours = explain(network, images[:4], targets[:4], "deep_lift_shap", baselines=3, reference=reference)
    assert wanted.abs().max() > 0.01
    assert (ours - wanted.detach()).abs().max() < 1e-5


def test_max_pooling_equals_captum_where_its_rule_holds():
    """Captum keeps one of what overlapping windows give a pixel, and a ReLU just before the pooling does not see what
    the pooling's rule gives; in both cases its sums are wrong.
    """
    torch.manual_seed(0)
    images, targets, baselines = torch.randn(4, 3, 18, 18), torch.tensor([0, 1, 2, 0]), torch.randn(2, 3, 18, 18)
    pool, overlapping = nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1)
    for first, holds in [((pool,), True), ((overlapping,), False), ((nn.ReLU(), pool), False)]:
        torch.manual_seed(1)
        last = (nn.Conv2d(4, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        model = nn.Sequential(nn.Conv2d(3, 4, 3), *first, *last).eval()
        wanted = captum.attr.DeepLiftShap(model).attribute(images, baselines, target=targets).sum(1).detach()
        ours = explain(model, images, targets, "deep_lift_shap[baselines=2]", reference=baselines)
        with torch.no_grad():
            gained = (model(images) - model(baselines).mean(0)).gather(1, targets[:, None])[:, 0]
        assert (ours.sum((1, 2)) - gained).abs().max() < 1e-6
        assert ((ours - wanted).abs().max() < 1e-6) == holds
        assert ((wanted.sum((1, 2)) - gained).abs().max() < 1e-6) == holds


def test_max_pooling_by_a_function_is_that_of_the_module():
    class Function(nn.Module):
        def forward(self, maps):
            return nn.functional.max_pool2d(maps, 3, stride=2)

    maps = []
    for pool in (nn.MaxPool2d(3, stride=2), Function()):
        torch.manual_seed(1)
        last = (nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        model = nn.Sequential(nn.Conv2d(3, 4, 3), pool, *last).eval()
        maps.append(explain(model, torch.randn(2, 3, 18, 18), torch.tensor([0, 1]), "deep_lift"))
    assert torch.equal(*maps)
    assert maps[0].isfinite().all()


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("target", attribution.TARGETS)
def test_conserved_for_every_target(target, normalise, trained, images, targets):
    readout = ReadOut(trained.weight, trained.bias, normalise=normalise, temperature=0.5)
    model = ExplainedNetwork(trained.backbone, readout, trained.prototypes).eval()
    given = {"reference": images[::2], "reference_labels": targets[::2]}
    images, targets = images[:8:2], targets[:8:2]
    score, of_mean = scores_of(model, images, targets, target, **given)
    # Of the magnitude of what cancels, the only part that rounding can be measured by.
    ours = explain(model, images, targets, "deep_lift", target=target, **given)
    assert (ours.sum((1, 2)) - (score - of_mean)).abs().max() < 1e-5 * ours.abs().sum((1, 2)).max()
    question = ask(Batch(model, images, targets, **given), target)
    passed, absorbed, _ = relevances(rewritten(question, "lrp"), images, question.weights, 0.25)
    assert (passed.sum((1, 2, 3)) + absorbed - score).abs().max() < 1e-5 * passed.abs().sum((1, 2, 3)).max()
    ours = explain(model, images, targets, "lrp", target=target, **given)
    assert (ours - passed.sum(1)).abs().max() < 1e-6 * passed.abs().max()
    assert not ours.isnan().any()


def test_deep_lift_through_a_norm(trained, by_hand, images, targets):
    """The multipliers of the features by a fine midpoint rule in float64, those of the backbone by Captum."""
    readout = ReadOut(trained.weight, trained.bias, normalise=True, temperature=0.5)
    model = ExplainedNetwork(trained.backbone, readout, trained.prototypes).eval()
    images, targets = images[:4], targets[:4]
    with torch.no_grad():
        begin, end = by_hand[0](torch.zeros_like(images)).double(), by_hand[0](images).double()
    total, steps = torch.zeros_like(end), 2000
    for step in range(steps):
        point = (begin + (step + 0.5) / steps * (end - begin)).requires_grad_()
        score = (F.normalize(point, dim=1) @ trained.weight.double().T / 0.5)[range(4), targets]
        total += torch.autograd.grad(score.sum(), point)[0] / steps
    multipliers = total.float()

    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = by_hand[0]

        def forward(self, images, multipliers):
            return (self.features(images) * multipliers).sum(1)

    wanted = captum.attr.DeepLift(Functional()).attribute(images, additional_forward_args=(multipliers,)).sum(1)
    assert (explain(model, images, targets, "deep_lift") - wanted.detach()).abs().max() < 1e-5


def test_lrp_equals_captum(network, by_hand, images, targets):
    """Without gamma it is LRP-0, which Captum has for modules; in float64, since it divides by every activation."""
    by_hand = copy.deepcopy(by_hand).double()
    images, targets = images[:4].double(), targets[:4]
    wanted = captum.attr.LRP(by_hand).attribute(images, target=targets).sum(1)
    ours = explain(copy.deepcopy(network).double(), images, targets, "lrp", gamma=1e-12)
    assert wanted.abs().max() > 0.01
    assert (ours - wanted).abs().max() < 1e-5


class Added(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.pool, self.last = nn.MaxPool2d(3, 2, 1), nn.Linear(3, 4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images):
        maps = self.relu(self.conv1(images))
        maps = self.relu(self.conv2(maps) + maps)
        return self.last(self.pool(maps).mean((2, 3)))


def test_lrp_equals_the_formula():
    torch.manual_seed(0)
    model = Added().eval()
    images, targets = torch.randn(3, 2, 5, 5), torch.tensor([0, 2, 3])
    ours = explain(model, images, targets, "lrp", gamma=0.25).numpy()
    for image, target, found in zip(images, targets, ours, strict=True):
        assert np.abs(found - lrp_by_hand(model, image, int(target))).max() < 1e-5
    with_more = explain(model, images, targets, "lrp", gamma=2)
    assert np.abs(with_more.numpy() - ours).max() > 1e-3


def lrp_by_hand(model, image, target):
    """Relevance (H,W) by loops over every connection, in float64."""

    def matrix(conv, channels):
        """A convolution of (channels,5,5) as a matrix: what each unit vector becomes."""
        units = torch.eye(channels * 25).view(-1, channels, 5, 5)
        with torch.no_grad():
            columns = F.conv2d(units, conv.weight, padding=1).flatten(1).T.double().numpy()
        return columns, conv.bias.detach().repeat_interleave(25).double().numpy()

    def backwards(weight, bias, given, relevance):
        """LRP-gamma of a layer, one output after the other."""
        shares = np.zeros(len(given))
        for output in range(len(relevance)):
            parts = weight[output] * given
            z = parts.sum() + bias[output]
            counted = parts * np.where(parts * z > 0, 1.25, 1)
            total = counted.sum() + bias[output] * (1.25 if bias[output] * z > 0 else 1)
            if relevance[output] != 0:
                shares += counted / total * relevance[output]
        return shares

    weight1, bias1 = matrix(model.conv1, 2)
    weight2, bias2 = matrix(model.conv2, 3)
    x = image.double().numpy().ravel()
    first = np.maximum(weight1 @ x + bias1, 0)
    branch = weight2 @ first + bias2
    second = np.maximum(branch + first, 0)
    maps = second.reshape(3, 5, 5)
    pooled = np.zeros((3, 3, 3))
    winners = {}
    for c, i, j in np.ndindex(3, 3, 3):
        window = {(c, a, b): maps[c, a, b] for a in range(2 * i - 1, 2 * i + 2) for b in range(2 * j - 1, 2 * j + 2)
                  if 0 <= a < 5 and 0 <= b < 5}  # fmt: skip
        winners[c, i, j] = max(window, key=window.get)
        pooled[c, i, j] = window[winners[c, i, j]]
    # The read-out: relevance starts as the score, of which the bias keeps its part.
    of_features = model.last.weight[target].detach().double().numpy() * pooled.mean((1, 2))
    of_maps = np.zeros((3, 5, 5))
    for c, i, j in np.ndindex(3, 3, 3):
        if pooled[c].sum() > 0:
            of_maps[winners[c, i, j]] += of_features[c] * pooled[c, i, j] / pooled[c].sum()
    of_sum = of_maps.ravel()
    total = np.where(second > 0, branch + first, 1)
    of_first = of_sum * first / total + backwards(weight2, bias2, first, of_sum * branch / total)
    return backwards(weight1, bias1, x, of_first).reshape(2, 5, 5).sum(0)


def test_conserved_on_torchvision_resnets(large):
    model, images, targets, scores, of_mean = large
    ours = explain(model, images, targets, "deep_lift")
    assert (ours.sum((1, 2)) - (scores - of_mean)).abs().max() < 1e-5 * ours.abs().sum((1, 2)).min()
    question = ask(Batch(model, images, targets), "class_score")
    passed, absorbed, _ = relevances(rewritten(question, "lrp"), images, question.weights, 0.25)
    # In ResNet-50, shares of one sign cancel those of the other; rounding is left with a ten thousandth of the score.
    assert (passed.sum((1, 2, 3)) + absorbed - scores).abs().max() < 1e-3 * scores.abs().min()
    assert 0 < passed.sum((1, 2, 3)).abs().max() < 10 * scores.abs().max()
    assert explain(model, images, targets, "lrp").isfinite().all()


def test_captum_alone_fails_on_torchvision_resnets(large):
    model, images, targets, scores, _ = large
    with pytest.raises(RuntimeError, match="used more than once"):
        captum.attr.DeepLift(copy.deepcopy(model)).attribute(images, target=targets)
    sums = captum.attr.LRP(copy.deepcopy(model)).attribute(images, target=targets).sum((1, 2, 3))
    assert (sums - scores).abs().min() > 1e6
    assert scores.abs().max() < 10


def test_a_map_that_does_not_add_up_is_nan(images, targets):
    class Unruled(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv2d(3, 10, 3)

        def forward(self, x):
            return (self.convolution(x).mean((2, 3)) * 3).exp()

    torch.manual_seed(0)
    model = Unruled().eval()
    batch = Batch(model, images[:4], targets[:4], reference=images[8:])
    maps = explain_many(batch, METHODS)
    for method in METHODS:
        assert maps[method].isnan().all()
        assert metrics.score("complexity", model, images[:4], targets[:4], maps[method], method=method).isnan().all()
        name = method.split("[")[0]
        with pytest.raises(ValueError, match=f"^{name} cannot explain Unruled: .* does not add up to the score"):
            attribution.check(Batch(model, images[:1], targets[:1], reference=images[8:]), [method])


def test_one_map_that_does_not_add_up_spares_the_others(network, images, targets):
    broken = images[:4].clone()
    broken[2, 0, 3, 3] = torch.nan
    for method in ("deep_lift", "lrp"):
        maps = explain(network, broken, targets[:4], method)
        assert maps[2].isnan().all()
        good = [0, 1, 3]
        assert (maps[good] - explain(network, images[:4][good], targets[:4][good], method)).abs().max() < 1e-5


def test_smooth_activations_gates_and_concatenation_are_served():
    torch.manual_seed(0)
    images = torch.randn(2, 3, 64, 64)
    for name in ("mobilenet_v3_small", "squeezenet1_1"):
        model = models.get_model(name, weights=None, num_classes=4)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            model.train()(images)
            targets = model.eval()(images).argmax(1)
        score, of_mean = scores_of(model, images, targets, "class_score")
        maps = explain_many(Batch(model, images, targets), ["deep_lift", "lrp"])
        difference = maps["deep_lift"].sum((1, 2)) - (score - of_mean)
        assert difference.abs().max() < 1e-5 * maps["deep_lift"].abs().sum((1, 2)).min()
        assert maps["lrp"].isfinite().all()
        attribution.check(Batch(model, images[:1], targets[:1]), ["deep_lift", "lrp"])


@pytest.mark.parametrize("target", attribution.TARGETS)
def test_a_network_that_makes_nothing_of_the_mean_image_is_served(target, images, targets):
    """Without biases, as before training, its features are zero there, where a norm has no gradient."""
    torch.manual_seed(0)
    last = (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), *last).eval()
    given = {"reference": images[8:], "reference_labels": targets[8:]}
    score, of_mean = scores_of(model, images[:4], targets[8:12], target, **given)
    ours = explain(model, images[:4], targets[8:12], "deep_lift", target=target, **given)
    assert (score - of_mean).abs().max() > 1e-4
    assert (ours.sum((1, 2)) - (score - of_mean)).abs().max() < 1e-5 * ours.abs().sum((1, 2)).max()


def test_deep_lift_shap_needs_reference_images(network, images, targets):
    with pytest.raises(ValueError, match="deep_lift_shap needs reference images; give reference="):
        attribution.check(Batch(network, images[:1], targets[:1]), ["deep_lift_shap"])
    given = {"reference": images[10:15]}
    fewer = explain(network, images[:2], targets[:2], "deep_lift_shap", **given)
    assert torch.equal(fewer, explain(network, images[:2], targets[:2], "deep_lift_shap", baselines=5, **given))


def test_maps_do_not_depend_on_the_batch(network, images, targets):
    reference = images[9:]
    together = explain_many(Batch(network, images[:9], targets[:9], reference=reference), METHODS)
    for method in METHODS:
        parts = [slice(0, 4), slice(4, 8), slice(8, 9)]
        alone = [explain(network, images[part], targets[part], method, reference=reference) for part in parts]
        assert (together[method] - torch.cat(alone)).abs().max() < 1e-5
        assert together[method].min() < 0 < together[method].max()


def test_the_model_stays_as_it_was(network, images, targets):
    network.zero_grad()  # other tests share it
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    given = images.clone()
    explain_many(Batch(network, images, targets, reference=images), METHODS)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(images, given)
    assert not images.requires_grad


def test_finds_the_patch_that_decides():
    model, images, targets, masks = decided_by_a_patch()
    maps = explain_many(Batch(model, images, targets, reference=images), METHODS)
    for method in METHODS:
        # A patch is 16 of 400 pixels: by chance 4 % of the highest lie on it.
        highest = maps[method].flatten(1).topk(16).indices
        assert masks.flatten(1).gather(1, highest).float().mean() > 0.6, method
