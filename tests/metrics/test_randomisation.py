import copy

import numpy as np
import pytest
import quantus
import torch
from quantus.helpers.model.pytorch_model import PyTorchModel
from scipy.stats import spearmanr
from torch import nn

from scl_ray.attribution import METHODS, Batch, cost, explain, explain_many
from scl_ray.attribution.seeding import generator
from scl_ray.metrics import cost as metrics_cost
from scl_ray.metrics import randomisation, score, score_many
from scl_ray.readout import ReadOut

N, SAMPLES, NOISE, SEED = 4, 3, 0.1, 5
QUIET = {"disable_warnings": True}
ON_CPU = {"device": "cpu", "softmax": False, "channel_first": True}


@pytest.fixture(scope="module")
def space(digits):
    return {"mean": digits.mean, "std": digits.std, "image_ids": range(50, 50 + N), "seed": SEED}


def randomised_by_hand(network, *, from_top=True):
    """Copies of the network with one more layer randomised each."""
    randomised = copy.deepcopy(network)
    modules = [
        (name, module)
        for name, module in randomised.named_modules()
        if hasattr(module, "reset_parameters") or isinstance(module, ReadOut)
    ]
    for name, module in reversed(modules) if from_top else modules:
        with torch.random.fork_rng():
            torch.manual_seed(int(generator(SEED, 0, f"randomised {name}").integers(2**63)))
            if isinstance(module, ReadOut):
                for values in (module.weight, module.bias):
                    values.copy_(torch.randn(values.shape) * values.square().mean().sqrt())
            else:
                module.reset_parameters()
        yield name, copy.deepcopy(randomised)


@pytest.fixture(scope="module")
def randomised(network):
    """By direction, whether from the top."""
    return {from_top: list(randomised_by_hand(network, from_top=from_top)) for from_top in (True, False)}


@pytest.fixture
def in_quantus(monkeypatch, randomised):
    """Quantus meets the same randomised networks, and explains by this project's saliency."""

    def models(self, order, seed):
        yield from randomised[order == "top_down"]

    monkeypatch.setattr(PyTorchModel, "get_random_layer_generator", models)
    monkeypatch.setattr(PyTorchModel, "random_layer_generator_length", len(randomised[True]))

    def explained(model, inputs, targets, **ignored):
        return explain(model, torch.tensor(inputs).float(), torch.tensor(targets), "saliency").double().numpy()

    monkeypatch.setattr(quantus, "explain", explained)
    return {"explain_func": explained, **ON_CPU}


def test_every_layer_with_weights_is_randomised_once_from_the_top(network, images, targets, space, randomised):
    batch = Batch(network, images[:N], targets[:N], **space)
    with torch.no_grad():
        scores = network(images[:N])
        for from_top in (True, False):
            steps = list(zip(randomisation.cascade(batch, from_top=from_top), randomised[from_top], strict=False))
            assert len(steps) == 19  # nine convolutions with their batch-norms, and the read-out
        assert [name for name, _ in randomised[True]][:2] == ["readout", "backbone.layer3.0.downsample.1"]
        for again in range(2):  # from the network's own weights every time
            last = scores
            for step, (_, expected) in zip(randomisation.cascade(batch), randomised[True], strict=True):
                found = step.model(images[:N])
                assert torch.equal(found, expected(images[:N])), again
                assert not torch.equal(found, last)
                last = found
    assert torch.equal(torch.cat([p.flatten() for p in step.model.parameters()]), _parameters(expected))


def _parameters(network):
    return torch.cat([parameter.flatten() for parameter in network.parameters()])


def test_mprt_equals_quantus_as_published(network, images, targets, maps, space, in_quantus):
    metric = quantus.MPRT(layer_order="top_down", return_average_correlation=True, **QUIET)
    given = images[:N].numpy(), targets[:N].numpy(), maps["saliency"][:N].numpy()
    theirs = metric(network, *given, **in_quantus)
    ours = score(
        "mprt", network, images[:N], targets[:N], maps["saliency"][:N], method="saliency", protocol="published", **space
    )
    assert np.abs(ours.numpy() - theirs).max() < 1e-5


@pytest.mark.parametrize("method", ["grad_cam", "saliency", "input_x_gradient"])
def test_mprt_is_the_mean_rank_correlation_over_layers(network, images, targets, maps, space, randomised, method):
    hand = []
    for i in range(N):
        one = slice(i, i + 1)
        first = maps[method][i].flatten().abs().double().numpy()
        correlations = []
        for _, model in randomised[True]:
            second = explain(model, images[one], targets[one], method).flatten().abs().double().numpy()
            rounded = [np.round(values / (values.max() or 1) * 1e6) for values in (first, second)]
            if rounded[1].min() < rounded[1].max():
                correlations.append(spearmanr(*rounded)[0])
        hand.append(np.mean(correlations))
    ours = score("mprt", network, images[:N], targets[:N], maps[method][:N], method=method, **space)
    assert ours.dtype == torch.float32
    # A value that rounds differently by the size of the batch changes its rank by a few of a thousand.
    assert np.abs(ours.numpy() - hand).max() < 1e-5
    assert (ours < 0.75).all()  # randomised weights change the maps


def smoothing_noise(images, space):
    """The draws of each noisy copy: (SAMPLES-1,N,C,H,W)."""
    streams = [generator(SEED, image_id, "smoothed") for image_id in space["image_ids"]]
    return [
        np.stack([stream.standard_normal(images.shape[1:], dtype=np.float32) for stream in streams])
        for _ in range(SAMPLES - 1)
    ]


def test_smooth_mprt_equals_quantus_as_published(monkeypatch, network, images, targets, maps, space, in_quantus):
    draws, calls = smoothing_noise(images, space), []

    def randn(*shape):
        calls.append(shape)
        return draws[(len(calls) - 1) % (SAMPLES - 1)]

    monkeypatch.setattr(np.random, "randn", randn)
    metric = quantus.SmoothMPRT(
        layer_order="bottom_up", nr_samples=SAMPLES, noise_magnitude=NOISE, return_average_correlation=True, **QUIET
    )
    theirs = metric(network, images[:N].numpy(), targets[:N].numpy(), **in_quantus)
    assert len(calls) == (2 + 19) * (SAMPLES - 1)  # the original twice
    ours = score(
        "smooth_mprt", network, images[:N], targets[:N], maps["saliency"][:N], method="saliency", samples=SAMPLES,
        noise=NOISE, protocol="published", **space,
    )  # fmt: skip
    # Maps that are added up in another order differ by rounding errors, which change ranks.
    assert np.abs(ours.numpy() - theirs).max() < 1e-4


def test_smooth_mprt_averages_maps_of_noise_in_pixel_space(network, images, targets, maps, space, randomised):
    mean, std = (torch.tensor(space[name]).view(-1, 1, 1) for name in ("mean", "std"))
    noisy = [
        ((images[:N] * std + mean + NOISE * torch.from_numpy(drawn)).clamp(0, 1) - mean) / std
        for drawn in smoothing_noise(images, space)
    ]

    def smooth(model):
        found = [explain(model, given, targets[:N], "saliency").double() for given in (images[:N], *noisy)]
        return (sum(found) / SAMPLES).flatten(1).numpy()

    first = smooth(network)
    hand = np.mean(
        [[spearmanr(a, b)[0] for a, b in zip(first, smooth(model), strict=True)] for _, model in randomised[False]], 0
    )
    given = network, images[:N], targets[:N], maps["saliency"][:N]
    ours = score("smooth_mprt", *given, method="saliency", samples=SAMPLES, noise=NOISE, **space)
    # Rounding magnitudes to 1e-6 of the largest makes a few of the smallest equal.
    assert np.abs(ours.numpy() - hand).max() < 1e-4
    # Averaging makes maps of a network more alike, so there is more of the original to be found, or less, but not the
    # same.
    assert (ours - score("mprt", *given, method="saliency", **space)).abs().min() > 1e-3


def test_efficient_mprt_equals_quantus(network, images, targets, maps, space, in_quantus):
    metric = quantus.EfficientMPRT(**QUIET)
    # Of the class scores it takes an entropy, which no value reads, but which fails on anything but probabilities.
    theirs = metric(network, images[:N].numpy(), targets[:N].numpy(), **{**in_quantus, "softmax": True})
    for protocol in ("corrected", "published"):
        ours = score(
            "efficient_mprt", network, images[:N], targets[:N], maps["saliency"][:N], method="saliency",
            protocol=protocol, **space,
        )  # fmt: skip
        assert np.abs(ours.numpy() - theirs).max() < 1e-5
    assert np.std(theirs) > 0.01


def other_maps(network, images, targets, space, method):
    offsets = [int(generator(SEED, image_id, "other class").integers(1, 10)) for image_id in space["image_ids"]]
    others = (targets[:N] + torch.tensor(offsets)) % 10
    assert len(set(offsets)) > 2
    return others, explain(network, images[:N], others, method)


def test_random_logit_equals_quantus_as_published(monkeypatch, network, images, targets, maps, space, in_quantus):
    others, _ = other_maps(network, images, targets, space, "saliency")
    theirs = []
    for i in range(N):  # one by one: it scales a batch's maps by the largest of them all
        one = slice(i, i + 1)
        index = (others[one] - (others[one] > targets[one]).long()).numpy()
        monkeypatch.setattr(np.random, "randint", lambda *bounds, index=index: index)
        metric = quantus.RandomLogit(num_classes=10, **QUIET)
        theirs += list(
            metric(network, images[one].numpy(), targets[one].numpy(), maps["saliency"][one].numpy(), **in_quantus)
        )
    ours = score(
        "random_logit", network, images[:N], targets[:N], maps["saliency"][:N], method="saliency",
        protocol="published", **space,
    )  # fmt: skip
    assert np.abs(ours.numpy() - theirs).max() < 1e-5


@pytest.mark.parametrize("method", ["saliency", "input_x_gradient"])
def test_random_logit_is_the_ssim_of_both_maps_when_corrected(network, images, targets, maps, space, method):
    from skimage.metrics import structural_similarity

    _, changed = other_maps(network, images, targets, space, method)
    hand = []
    for first, second in zip(maps[method][:N].double().numpy(), changed.double().numpy(), strict=True):
        first, second = first / np.abs(first).max(), second / np.abs(second).max()
        span = max(first.max(), second.max()) - min(first.min(), second.min())
        hand.append(structural_similarity(first, second, data_range=span))
    ours = score("random_logit", network, images[:N], targets[:N], maps[method][:N], method=method, **space)
    assert np.abs(ours.numpy() - hand).max() < 1e-5


def test_random_logit_shares_the_other_class_with_contrastivity(network, images, targets, maps, space):
    seen = []
    given = {method: maps[method][:N] for method in ("grad_cam", "saliency")}
    cells = [(method, metric) for method in given for metric in ("random_logit", "ssim_contrastivity")]
    with network.register_forward_hook(lambda module, inputs, output: seen.append(len(output))):
        found = score_many(Batch(network, images[:N], targets[:N], **space), given, cells)
    assert sum(seen) == N
    assert metrics_cost(cells, 32) == cost(list(given), 32, shared=True)
    for order in (cells, cells[::-1]):
        again = score_many(Batch(network, images[:N], targets[:N], **space), given, order)
        assert all(torch.equal(again[cell].values, found[cell].values) for cell in cells)


def test_methods_share_the_randomised_networks_and_their_passes(network, images, targets, maps, space):
    methods = ["grad_cam", "eigen_cam", "saliency"]
    given = {method: maps[method][:N] for method in methods}
    batch = Batch(network, images[:N], targets[:N], **space)
    seen = []
    with network.register_forward_hook(lambda module, inputs, output: seen.append(len(output))):
        for metric, passes in (
            ("mprt", 19), ("efficient_mprt", 1), (f"smooth_mprt[samples={SAMPLES}]", SAMPLES - 1 + 19 * SAMPLES),
        ):  # fmt: skip
            cells = [(method, metric) for method in methods]
            score_many(batch, given, cells)
            assert sum(seen) == passes * N
            # What it costs is stated for a ResNet-18.
            expected = {19: 41, 1: 1}.get(passes, SAMPLES - 1 + 41 * SAMPLES)
            assert metrics_cost(cells, 32) == expected * cost(methods, 32)
            seen.clear()
    built = [value for name, value in batch.kept.items() if name.startswith("randomised")]
    assert len(built) == 1
    score_many(batch.but(images=images[N : 2 * N], targets=targets[N : 2 * N]), given, [("saliency", "mprt")])
    assert batch.kept[f"randomised[seed={SEED}]"] is built[0]


@pytest.mark.parametrize("metric", ["mprt", "smooth_mprt[samples=2]", "efficient_mprt", "random_logit"])
def test_order_and_size_of_the_batch_change_nothing(network, images, targets, maps, space, metric):
    ids = torch.arange(50, 50 + N)

    def values(chosen):
        return score(
            metric, network, images[chosen], targets[chosen], maps["grad_cam"][chosen], method="grad_cam",
            **{**space, "image_ids": ids[chosen]},
        )  # fmt: skip

    together = values(torch.arange(N))
    shuffled = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    # Grad-CAM of a randomised network is all zero here and there.
    assert together.isnan().sum() <= 2
    assert torch.allclose(values(shuffled), together[shuffled], rtol=0, atol=1e-5, equal_nan=True)
    parts = torch.cat([values(torch.arange(start, end)) for start, end in ((0, 1), (1, N))])
    assert torch.allclose(parts, together, rtol=0, atol=1e-5, equal_nan=True)


def test_the_cam_layer_is_that_of_the_randomised_network(network, images, targets, space, randomised):
    layer = network.backbone.layer2[-1]
    given = network, images[:N], targets[:N]
    of_layer = explain(*given, "grad_cam", layer=layer)
    batch = Batch(*given, layer, **space)
    found = randomisation.explain_all_randomised(batch, {"grad_cam": of_layer}, "", protocol="corrected")
    model = randomised[True][-1][1]
    expected = explain(model, *given[1:], "grad_cam", layer=model.backbone.layer2[-1])
    assert (found["grad_cam"] - expected).abs().max() < 1e-5
    # A layer that was found stands at the same place.
    plain = nn.Sequential(nn.Conv2d(3, 8, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)).eval()
    batch = Batch(plain, images[:N], targets[:N], **space)
    steps = []
    for step in randomisation.cascade(batch):
        explain_many(step, ["grad_cam"])
        steps.append(step)
    assert len(steps) == 2
    assert steps[1].layer is steps[0].kept["layer"]
    assert any(steps[1].layer is module for module in steps[1].model)


def test_targets_that_do_not_read_the_class_scores(network, images, targets, space):
    methods = ["saliency", "saliency[target=prototype]", "saliency[target=label_free]"]
    batch = Batch(network, images[:N], targets[:N], **space)
    maps = explain_many(batch, methods)
    found = randomisation.explain_randomised(batch, maps, "", protocol="corrected")
    # First the read-out: class scores and prototypes are anew, and the embedding is as before.
    assert (found[methods[0]][:, 0] < 0.999).all()
    assert (found[methods[1]][:, 0] < 0.999).all()
    assert (found[methods[2]][:, 0] > 1 - 1e-6).all()
    assert (found[methods[2]][:, -1] < 0.9).all()


@pytest.mark.skipif("edge" not in METHODS, reason="there is no such control")
def test_a_map_of_the_image_alone_survives_randomisation(network, images, targets, space):
    edges = explain(network, images[:N], targets[:N], "edge")
    given = network, images[:N], targets[:N], edges
    assert torch.allclose(score("mprt", *given, method="edge", **space), torch.ones(N), atol=1e-6)
    assert torch.allclose(score("efficient_mprt", *given, method="edge", **space), torch.zeros(N), atol=1e-6)


def test_layers_after_which_a_map_is_constant_are_left_out(maps):
    correlations = torch.tensor([[0.5, torch.nan, 0.1], [torch.nan, torch.nan, torch.nan]])
    corrected, published = (
        randomisation.rank_correlation(None, None, correlations, protocol=protocol)
        for protocol in ("corrected", "published")
    )
    assert torch.allclose(corrected[:1], torch.tensor([0.3]))
    assert corrected[1].isnan()
    assert published.isnan().all()


def test_the_network_stays_as_it_was(network, images, targets, maps, space):
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    before, random_state, numpy_state = images.clone(), torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for metric in ("mprt", "smooth_mprt[samples=2]"):
        score(metric, network, images[:2], targets[:2], maps["grad_cam"][:2], method="grad_cam")
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_network_without_layers_to_randomise_is_refused(images, targets, maps):
    class Fixed(nn.Module):
        def forward(self, given):
            return given.square().mean(3)[:, :, :10].sum(1)

    with pytest.raises(ValueError, match="Fixed has no layers with reset_parameters"):
        score("mprt", Fixed().eval(), images[:2], targets[:2], maps["saliency"][:2], method="saliency")
