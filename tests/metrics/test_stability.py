import numpy as np
import pytest
import quantus
import torch
from torch import nn

from scl_ray.attribution import Batch, cost, explain
from scl_ray.attribution.seeding import generator
from scl_ray.metrics import METRICS, score, score_many, stability
from scl_ray.metrics import cost as metrics_cost

STABILITY = list(stability.METRICS)
RELATIVE = [name for name in STABILITY if name.startswith("relative")]
N, SAMPLES, RADIUS = 6, 3, 0.1


@pytest.fixture(scope="module")
def space(digits):
    return {"mean": digits.mean, "std": digits.std, "image_ids": range(50, 50 + N), "seed": 3}


def perturbed_by_hand(images, protocol, samples=SAMPLES, radius=RADIUS, *, mean, std, image_ids, seed):
    """The perturbed copies of each image, (samples,N,C,H,W), in float64 up to the last rounding."""
    mean, std = (torch.tensor(values).double().view(-1, 1, 1) for values in (mean, std))
    copies = []
    for image, image_id in zip(images.double(), image_ids, strict=True):
        stream = generator(seed, image_id, "perturbed")
        for _ in range(samples):
            noise = radius * (2 * torch.from_numpy(stream.random(image.shape, dtype=np.float32)).double() - 1)
            if protocol == "published":
                copies.append(image + noise)
            else:
                copies.append(((image * std + mean + noise).clamp(0, 1) - mean) / std)
    return torch.stack(copies).unflatten(0, (len(images), samples)).transpose(0, 1).float()


def values_by_hand(network, images, targets, maps, method, protocol, space, **perturbation):
    """Every metric of this family, one image and one copy at a time in float64."""
    copies = perturbed_by_hand(images, protocol, **perturbation, **space).transpose(0, 1)
    found = {name: [] for name in STABILITY}

    def change(before, after):
        before, after = before.double().flatten().numpy(), after.double().flatten().numpy()
        if protocol == "published":
            divisor = np.array([1e-6 if value == 0 else value for value in before])
        else:
            divisor = np.array([max(abs(value), 0.01 * np.abs(before).max()) for value in before])
        return np.sqrt((((after - before) / divisor) ** 2).sum())

    def distance(before, after):
        return float((before.double() - after.double()).square().sum().sqrt())

    for image, target, before, of_image in zip(images, targets, maps, copies, strict=True):
        ratios = {name: [] for name in STABILITY}
        for copy in of_image:
            after = explain(network, copy[None], target[None], method)[0]
            with torch.no_grad():
                old, new = network.embed(image[None]), network.embed(copy[None])
                old_scores, new_scores = network.readout(old), network.readout(new)
            ratios["local_lipschitz_estimate"].append(
                distance(before / before.abs().max(), after / after.abs().max()) / distance(image, copy)
            )
            sensitivity = distance(before, after) / distance(before, torch.zeros(()))
            ratios["max_sensitivity"].append(sensitivity)
            ratios["avg_sensitivity"].append(sensitivity)
            same = old_scores.argmax() == new_scores.argmax()
            for name, moved in (
                ("relative_input_stability", change(image, copy)),
                ("relative_output_stability", distance(old_scores, new_scores)),
                ("relative_representation_stability", change(old, new)),
            ):
                ratios[name].append(change(before, after) / moved if same else np.nan)
        for name, of_copies in ratios.items():
            if name == "avg_sensitivity":
                found[name].append(np.mean(of_copies))
            else:
                found[name].append((np.max if protocol == "published" else np.nanmax)(of_copies))
    return found


@pytest.mark.parametrize("protocol", ["corrected", "published"])
@pytest.mark.parametrize("method", ["saliency", "grad_cam"])
def test_equal_the_formulas_one_copy_at_a_time(network, images, targets, maps, space, method, protocol):
    given = network, images[:N], targets[:N], maps[method][:N]
    hand = values_by_hand(*given, method, protocol, space)
    for name in STABILITY:
        ours = score(name, *given, method=method, samples=SAMPLES, radius=RADIUS, protocol=protocol, **space)
        assert ours.dtype == torch.float32
        # Values grow to hundreds where scores hardly move, so the difference is relative there; divisors in the
        # published form are as small as the rounding errors of a map.
        tolerance = 1e-4 if protocol == "published" and name in RELATIVE else 1e-5
        assert np.allclose(ours, hand[name], rtol=tolerance, atol=1e-5, equal_nan=True), name
        assert np.nanstd(hand[name]) > 1e-3


CLASSES = {
    "local_lipschitz_estimate": quantus.LocalLipschitzEstimate,
    "max_sensitivity": quantus.MaxSensitivity,
    "avg_sensitivity": quantus.AvgSensitivity,
    "relative_input_stability": quantus.RelativeInputStability,
    "relative_output_stability": quantus.RelativeOutputStability,
    "relative_representation_stability": quantus.RelativeRepresentationStability,
}


@pytest.mark.parametrize("name", STABILITY)
def test_equals_quantus_as_published(network, images, targets, maps, space, name):
    copies = perturbed_by_hand(images[:N], "published", **space).numpy()
    parameters = {"nr_samples": SAMPLES, "disable_warnings": True}
    if name == "relative_representation_stability":
        # It takes the outputs of layers, here of the backbone.
        parameters["layer_names"] = ["backbone"]
    theirs = []
    for i in range(N):  # one by one: it scales a batch's maps by the largest of them all
        queue = [copy[i : i + 1].reshape(1, -1) for copy in copies]
        metric = CLASSES[name](perturb_func=lambda arr, queue=queue, **ignored: queue.pop(0), **parameters)

        def again(model, inputs, targets, **ignored):
            return explain(network, torch.tensor(inputs), torch.tensor(targets), "saliency").numpy()

        one = slice(i, i + 1)
        theirs += list(
            metric(
                network, images[one].numpy(), targets[one].numpy(), a_batch=maps["saliency"][one].numpy(),
                explain_func=again, device="cpu", softmax=False, channel_first=True,
            )
        )  # fmt: skip
    ours = score(
        name, network, images[:N], targets[:N], maps["saliency"][:N], method="saliency", samples=SAMPLES,
        radius=RADIUS, protocol="published", **space,
    )  # fmt: skip
    # Relative changes divide by values of a map that are as small as its rounding errors, here and there.
    tolerance = 1e-4 if name in RELATIVE else 1e-5
    assert np.allclose(ours, theirs, rtol=tolerance, atol=1e-5, equal_nan=True)
    assert np.isfinite(theirs).sum() >= N - 1


def test_all_metrics_and_methods_share_the_passes(network, images, targets, maps, space):
    methods = ["grad_cam", "eigen_cam", "saliency"]
    cells = [(method, f"{name}[samples={SAMPLES}]") for method in methods for name in STABILITY]
    given = {method: maps[method][:N] for method in methods}
    seen = []
    batch = Batch(network, images[:N], targets[:N], **space)
    with network.register_forward_hook(lambda module, inputs, output: seen.append(len(output))):
        found = score_many(batch, given, cells)
        assert sum(seen) == (1 + SAMPLES) * N + 1  # one to find the module that reads features, once a network
        seen.clear()
        score_many(batch, given, cells)
        assert sum(seen) == (1 + SAMPLES) * N
    # Beside the forward passes, one backward pass of each copy, which counts two.
    assert metrics_cost(cells, 32) == 1 + SAMPLES * cost(methods, 32) == 1 + SAMPLES * 3
    for method, name in reversed(cells):
        alone = score(name, network, images[:N], targets[:N], maps[method][:N], method=method, **space)
        assert torch.allclose(found[method, name].values, alone, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_order_and_size_of_the_batch_change_nothing(network, images, targets, maps, space):
    ids = torch.arange(50, 50 + N)
    shuffled = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    for name in STABILITY:

        def values(chosen, name=name):
            return score(
                name, network, images[chosen], targets[chosen], maps["grad_cam"][chosen], method="grad_cam",
                samples=SAMPLES, **{**space, "image_ids": ids[chosen]},
            )  # fmt: skip

        together = values(torch.arange(N))
        assert torch.allclose(values(shuffled), together[shuffled], rtol=1e-5, atol=1e-5)
        assert torch.allclose(torch.cat([values(torch.tensor([i])) for i in range(N)]), together, rtol=1e-5, atol=1e-5)


def test_more_samples_and_larger_neighbourhoods_move_maps_further(network, images, targets, maps, space):
    given = network, images[:N], targets[:N], maps["saliency"][:N]
    few, more = (
        score("max_sensitivity", *given, method="saliency", samples=samples, **space) for samples in (2, SAMPLES)
    )
    assert (few <= more).all()
    assert (few < more).any()
    near, far = (
        score("avg_sensitivity", *given, method="saliency", samples=2, radius=radius, **space) for radius in (0.01, 0.3)
    )
    assert (near < far).all()


def test_copies_with_another_prediction_do_not_count(network, images, targets, maps, space):
    class Fickle(nn.Module):
        """Predicts class 1 wherever the first pixel is not that of the image."""

        def __init__(self):
            super().__init__()
            self.network = network
            self.embed = network.embed

        def forward(self, given):
            scores = network(given)
            moved = (given[:, 0, 0, 0] - images[0, 0, 0, 0]) > 0
            return torch.where(moved[:, None], scores.roll(1, 1), scores)

    model = Fickle().eval()
    copies = perturbed_by_hand(images[:1], "corrected", 8, **{**space, "image_ids": [50]})[:, 0]
    kept = copies[:, 0, 0, 0] <= images[0, 0, 0, 0]
    assert 0 < kept.sum() < 8
    given = {"method": "eigen_cam", "layer": network.cam_layer, "samples": 8, **space, "image_ids": [50]}
    one = model, images[:1], targets[:1], maps["eigen_cam"][:1]
    batch = Batch(model, *one[1:3], network.cam_layer, **{**space, "image_ids": [50]})
    of_copies = stability.explain_perturbed(
        batch, {"eigen_cam": one[3]}, "", samples=8, radius=RADIUS, protocol="corrected"
    )["eigen_cam"]
    assert torch.equal(of_copies.kept[0] == 1, kept)
    ratios = (of_copies.map_change / of_copies.scores)[0]
    assert abs(score("relative_output_stability", *one, **given) - ratios[kept].max()) < 1e-5 * ratios[kept].max()
    assert score("relative_output_stability", *one, **{**given, "protocol": "published"}).isnan().all()
    # What the map alone says counts every copy.
    assert abs(score("max_sensitivity", *one, **given) - of_copies.maps.max()) < 1e-5


def test_undefined_without_a_copy_or_a_representation(images, targets, maps, space):
    class Pooled(nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.convolution = nn.Conv2d(3, 10, 3)
            nn.init.normal_(self.convolution.weight, generator=torch.Generator().manual_seed(0))
            nn.init.zeros_(self.convolution.bias)

        def forward(self, given):
            return self.convolution(given).relu().mean((2, 3))

    given = Pooled(0).eval(), images[:2], targets[:2], maps["saliency"][:2]
    for name in STABILITY:
        missing = name == "relative_representation_stability"
        own = {**space, "image_ids": [50, 51]}
        assert score(name, *given, method="saliency", samples=2, radius=1e-3, **own).isnan().all() == missing


def test_the_network_stays_as_it_was(network, images, targets, maps, space):
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    before, random_state = images.clone(), torch.get_rng_state()
    score("max_sensitivity", network, images[:2], targets[:2], maps["saliency"][:2], method="saliency", samples=1)
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_bad_parameters(network, images, targets, maps):
    with pytest.raises(ValueError, match="samples must be a whole number of at least 1, not 0"):
        score("max_sensitivity[samples=0]", network, images, targets, maps["grad_cam"], method="grad_cam")
    with pytest.raises(ValueError, match="radius must be a number above 0, not -1"):
        score("max_sensitivity[radius=-1]", network, images, targets, maps["grad_cam"], method="grad_cam")
    assert all("re-explanation" in METRICS[name].needs for name in STABILITY)
