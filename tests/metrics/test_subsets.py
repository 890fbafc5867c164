import numpy as np
import pytest
import quantus
import torch
from scipy.stats import pearsonr
from torch import nn

from scl_ray import attribution
from scl_ray.attribution import Batch
from scl_ray.metrics import cost, score, score_many


@pytest.fixture
def passed(monkeypatch):
    """How many images went through the network without gradients, pass by pass."""
    counts = []
    scores = Batch.scores

    def counting(self, images, *arguments):
        counts.append(len(images))
        return scores(self, images, *arguments)

    monkeypatch.setattr(Batch, "scores", counting)
    return counts


def predicted(network, images):
    with torch.no_grad():
        return network(images).argmax(1)


def subsets(network, images, targets, size, runs):
    """The subsets of *size* pixels that are drawn, image by image."""
    streams = Batch(network, images, targets).generators(f"random subsets of {size} pixels")
    return [
        [stream.choice(images[0, 0].numel(), size, replace=False, shuffle=False) for _ in range(runs)]
        for stream in streams
    ]


def correlation_by_hand(exact, image, target, attribution, drawn, filling):
    """Of the attribution of each subset *drawn* with the drop of the score without it, in float64."""
    change, summed = [], []
    for subset in drawn:
        left = image.double().clone()
        for pixel in subset:
            left[:, pixel // left.shape[2], pixel % left.shape[2]] = filling
        with torch.no_grad():
            change.append(float(exact(image.double()[None])[0, target] - exact(left[None])[0, target]))
        summed.append(sum(float(attribution.flatten()[pixel]) for pixel in subset))
    return pearsonr(summed, change)[0]


def test_faithfulness_correlation_equals_quantus(monkeypatch, network, colour):
    targets = predicted(network, colour)
    maps = attribution.explain(network, colour, targets, "input_x_gradient")
    drawn = subsets(network, colour, targets, 32, 30)
    # Quantus draws single channel values, run by run: give it all channels of the pixels that are drawn here.
    queue = iter([np.add.outer([0, 1024, 2048], own[run]).ravel() for run in range(30) for own in drawn])
    metric = quantus.FaithfulnessCorrelation(
        nr_runs=30, subset_size=96, perturb_baseline="black", return_aggregate=False, disable_warnings=True
    )
    monkeypatch.setattr(np.random, "choice", lambda *arguments, **options: next(queue))
    theirs = metric(network, colour.numpy(), targets.numpy(), maps[:, None].numpy(), device="cpu")
    ours = score("faithfulness_correlation[runs=30]", network, colour, targets, maps)
    assert np.abs(ours.numpy() - theirs).max() < 1e-5
    assert ours.std() > 0.05


@pytest.mark.parametrize("protocol", ["corrected", "published"])
def test_faithfulness_correlation_equals_a_float64_loop(network, exact, colour, protocol):
    images = colour[:3, :, :24]  # not square
    targets = predicted(network, images)
    maps = attribution.explain(network, images, targets, "grad_cam")
    parameters = {"runs": 12, "subset_size": 100, "baseline": "mean", "protocol": protocol}
    ours = score("faithfulness_correlation", network, images, targets, maps, **parameters)
    drawn = subsets(network, images, targets, 100, 12)
    for i in range(3):
        hand = correlation_by_hand(exact, images[i], targets[i], maps[i].double(), drawn[i], images[i].double().mean())
        assert abs(ours[i] - hand) < 1e-5


def test_sensitivity_n_equals_a_float64_loop(network, exact, images, targets, maps):
    batch = Batch(network, images[:2], targets[:2])
    cell = ("saliency", "sensitivity_n[runs=6]")
    found = score_many(batch, {"saliency": maps["saliency"][:2]}, [cell])[cell]
    assert found.curve.shape == (2, 5)
    drawn = [subsets(network, images[:2], targets[:2], size, 6) for size in (1, 4, 16, 64, 256)]
    for i in range(2):
        # A subset that changes next to nothing leaves float32 few digits of the drop; the scores are right to 1e-5.
        given = exact, images[i], targets[i], maps["saliency"][i].double()
        hand = [correlation_by_hand(*given, own[i], images[i].min().double()) for own in drawn]
        assert np.abs(found.curve[i].numpy() - hand).max() < 1e-4
        assert np.abs(found.curve[i].numpy() - hand)[2:].max() < 1e-5
        assert abs(found.values[i] - np.mean(hand)) < 3e-5


def test_all_methods_share_one_set_of_passes(passed, network, images, targets, maps):
    for metric, copies in (
        ("faithfulness_correlation[runs=10]", 10),
        ("sensitivity_n[n=20,runs=10]", 10),
        ("infidelity", 65),
        ("faithfulness_estimate[features_per_step=1]", 1024),
        ("faithfulness_estimate", 4 * 32),
        ("monotonicity_correlation[samples=2]", 4 * 64 + 1),
        ("non_sensitivity", 65),
        ("completeness", 2),
    ):
        some = 1 if copies == 1024 else 2
        cells = [(method, metric) for method in maps]
        batch = Batch(network, images[:some], targets[:some])
        found = score_many(batch, {method: values[:some] for method, values in maps.items()}, cells)
        assert len({float(values.values.sum()) for values in found.values()}) > 1
        assert sum(passed) == some * copies
        # The pass of the images themselves, where one is taken, is there in an evaluation.
        assert cost(cells, 32) == copies - (copies in (2, 65, 257))
        assert max(passed) <= 64
        passed.clear()


SPECS = [
    "faithfulness_correlation[runs=15]",
    "sensitivity_n[n=64,runs=15]",
    "faithfulness_estimate",
    "monotonicity_correlation[samples=1]",
    "infidelity",
    "completeness",
    "non_sensitivity",
]


@pytest.mark.parametrize("spec", SPECS)
def test_neither_batch_nor_order_nor_chunks_change_a_value(network, images, targets, maps, spec):
    ids = [5, 3, 8, 1]
    given = {"grad_cam": maps["grad_cam"][ids], "input_x_gradient": maps["input_x_gradient"][ids]}

    def values(which, at_once):
        batch = Batch(
            network, images[ids][which], targets[ids][which], image_ids=[ids[i] for i in which], at_once=at_once
        )
        found = score_many(batch, {m: v[which] for m, v in given.items()}, [(m, spec) for m in given])
        return torch.stack([scores.values for scores in found.values()])

    together = values(list(range(4)), 64)
    assert torch.allclose(values(list(range(4)), 7), together, rtol=0, atol=1e-5)
    order = [2, 0, 3, 1]
    assert torch.allclose(values(order, 50), together[:, order], rtol=0, atol=1e-5)
    assert torch.allclose(torch.cat([values([i], 64) for i in range(4)], 1), together, rtol=0, atol=1e-5)


def test_nothing_of_the_callers_changes(network, images, targets, maps):
    np.random.seed(3)  # noqa: NPY002  # the global state
    before = images[:2].clone(), maps["saliency"][:2].clone(), torch.get_rng_state()
    for spec in SPECS:
        score(spec, network, images[:2], targets[:2], maps["saliency"][:2])
    assert torch.equal(images[:2], before[0])
    assert torch.equal(maps["saliency"][:2], before[1])
    assert torch.equal(torch.get_rng_state(), before[2])
    assert np.random.random() == np.random.RandomState(3).random()  # noqa: NPY002


@pytest.mark.parametrize(
    ("spec", "higher"),
    [
        ("faithfulness_correlation[runs=40]", True),
        ("sensitivity_n[n=64,runs=40]", True),
        ("faithfulness_estimate", True),
        ("monotonicity_correlation[samples=2]", True),
        ("infidelity", False),
    ],
)
def test_a_map_of_noise_is_less_faithful(network, images, targets, spec, higher):
    batch = Batch(network, images[:16], targets[:16])
    methods = ["grad_cam", "integrated_gradients[steps=20]"]
    maps = attribution.explain_many(batch, methods)
    maps["noise"] = torch.rand(16, 32, 32, generator=torch.Generator().manual_seed(0))
    found = score_many(batch, maps, [(method, spec) for method in maps if method != "noise"])
    noise = score(spec, network, images[:16], targets[:16], maps["noise"]).mean()
    for method in methods:
        mean = found[method, spec].values.mean()
        assert mean > noise + 0.1 if higher else mean < 0.9 * noise


@pytest.mark.parametrize("spec", SPECS[:5])
def test_a_network_that_sees_nothing_has_no_correlation(images, targets, maps, spec):
    class Blind(nn.Module):
        def forward(self, given):
            return (0 * given).mean((2, 3)) + torch.arange(3.0)

    values = score(spec, Blind().eval(), images[:3], targets[:3] % 3, maps["saliency"][:3])
    assert (values == 0).all() if spec == "infidelity" else values.isnan().all()


@pytest.mark.parametrize("spec", SPECS[:5])
def test_bfloat16_is_near(network, images, targets, maps, spec):
    full = score(spec, network, images, targets, maps["grad_cam"])
    half = score(spec, network, images, targets, maps["grad_cam"], precision="bfloat16")
    assert not torch.equal(full, half)
    # Eight bits of mantissa for the features, over scores that differ by some per cent.
    assert (full - half).abs().mean() < 0.02


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("faithfulness_correlation[subset_size=1024]", "a subset of 1024 leaves none of 1024 pixels"),
        ("sensitivity_n[n=2000]", "a subset of 2000 leaves none of 1024 pixels"),
        ("sensitivity_n[runs=2]", "runs must be a whole number of at least 3, not 2"),
        ("faithfulness_correlation[runs=0]", "runs must be a whole number of at least 3, not 0"),
        ("faithfulness_correlation[baseline=black]", "baseline must be minimum or mean or zero or blur or uniform"),
        ("faithfulness_estimate[features_per_step=600]", "makes 2 of 1024 pixels, too few groups for a correlation"),
        ("monotonicity_correlation[samples=0]", "samples must be a whole number of at least 1, not 0"),
        ("infidelity[patch_size=32]", "patch_size=32 takes images of 32x32 pixels as one patch; take a smaller one"),
    ],
)
def test_bad_parameters(network, images, targets, maps, spec, message):
    with pytest.raises(ValueError, match=message):
        score(spec, network, images[:2], targets[:2], maps["grad_cam"][:2])
