import logging
import random
import re
from pathlib import Path

import numpy as np
import pytest
import quantus
import torch
from torch import nn

import scl_ray
from scl_ray import attribution, config, evaluation, specs
from scl_ray.attribution import Batch
from scl_ray.config import Cell
from scl_ray.metrics import cost, resolve, score
from scl_ray.metrics.quantus_classes import CLASSES, REFUSED

# Few passes for every class; whatever is not a parameter of it is left out.
QUICK = {
    "nr_runs": 4, "subset_size": 40, "features_in_step": 48, "nr_samples": 2, "nr_steps": 4, "n_perturb_samples": 1,
    "k": 20,
}  # fmt: skip


@pytest.fixture(scope="module")
def small(images, masks):
    """Three colour images of 12x12 pixels and their masks."""
    shrunk = nn.functional.interpolate(images[:3], (12, 12), mode="area")
    shrunk_masks = nn.functional.adaptive_max_pool2d(masks[:3].float(), 12).bool()
    return shrunk * torch.tensor([1.0, 0.7, 0.4]).view(3, 1, 1), shrunk_masks


@pytest.fixture(scope="module")
def classes(network, small):
    with torch.no_grad():
        return network(small[0]).argmax(1)


@pytest.fixture(scope="module")
def found(network, small, classes):
    return attribution.explain_many(Batch(network, small[0], classes), ["saliency", "input_x_gradient"])


def quick(name):
    parameters = resolve(f"quantus:{name}").entry.parameters
    return resolve(f"quantus:{name}", **{key: value for key, value in QUICK.items() if key in parameters})


def test_every_class_of_quantus_can_be_had_or_is_refused():
    theirs = {kind.__name__ for kinds in quantus.AVAILABLE_METRICS.values() for kind in kinds.values()}
    assert theirs == CLASSES.keys() | REFUSED.keys()
    assert not CLASSES.keys() & REFUSED.keys()


@pytest.mark.parametrize("name", CLASSES)
def test_every_allowed_class_gives_one_value_an_image(network, small, classes, found, name):
    images, masks = small
    spec, entry, _ = quick(name)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    had_trapz = hasattr(np, "trapz")
    weights = [tensor.clone() for tensor in network.state_dict().values()]

    def values_of(part, ids):
        return score(
            spec, network, images[part], classes[part], found["saliency"][part], method="saliency", masks=masks[part],
            image_ids=ids,
        )  # fmt: skip

    values = values_of(slice(0, 2), [3, 4])
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    assert all(torch.equal(*pair) for pair in zip(weights, network.state_dict().values(), strict=True))
    assert hasattr(np, "trapz") == had_trapz
    if not name.startswith("Relative"):  # which are undefined where noise changes the prediction
        assert values.isfinite().all()
    defined = values[values.isfinite()]
    assert ((entry.range[0] <= defined) & (defined <= entry.range[1])).all()
    # Draws are the image's own, and nothing else of the batch matters.
    assert torch.allclose(values_of(slice(1, 2), [4]), values[1:], atol=1e-5, rtol=1e-4, equal_nan=True)
    assert entry.facet in ("faithfulness", "continuity", "coherence", "complexity", "sparseness", "contrastivity",
                           "randomisation", "axiomatic")  # fmt: skip
    assert entry.direction in ("lower", "higher")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Complexity", {}),
        ("Sparseness", {}),
        ("EffectiveComplexity", {"eps": 0.1}),
        ("RelevanceMassAccuracy", {}),
        ("AttributionLocalisation", {"positive_attributions": True, "abs": False}),
        ("AUC", {}),
        ("Infidelity", {"n_perturb_samples": 1}),
        ("FaithfulnessEstimate", {"features_in_step": 48, "perturb_baseline": "mean"}),
        ("Monotonicity", {"features_in_step": 72}),
    ],
)
@pytest.mark.parametrize("method", ["saliency", "input_x_gradient"])
def test_equals_quantus_called_with_one_image(network, small, classes, found, name, parameters, method):
    images, masks = small
    ours = score(f"quantus:{name}", network, images, classes, found[method], masks=masks, **parameters)
    for index in range(3):
        one = slice(index, index + 1)
        (theirs,) = getattr(quantus, name)(**parameters, return_aggregate=False, disable_warnings=True)(
            model=network, x_batch=images[one].numpy(), y_batch=classes[one].numpy(),
            a_batch=found[method][one, None].double().numpy(), s_batch=masks[one, None].numpy(), channel_first=True,
            device="cpu",
        )  # fmt: skip
        assert abs(ours[index] - float(theirs)) <= 1e-5 * max(1, abs(float(theirs)))


def test_curves_become_their_area(monkeypatch, network, small, classes, found):
    monkeypatch.setattr(np, "trapz", np.trapezoid, raising=False)
    given = {"x_batch": small[0][:1].numpy(), "y_batch": classes[:1].numpy(), "channel_first": True, "device": "cpu"}
    given["a_batch"] = found["saliency"][:1, None].double().numpy()
    for name in ("PixelFlipping", "RegionPerturbation", "Selectivity"):
        spec, _, parameters = quick(name)
        own = {key: value for key, value in parameters.items() if key != "protocol"}
        (curve,) = getattr(quantus, name)(**own, disable_warnings=True)(model=network, **given)
        assert len(curve) > 3
        ours = score(spec, network, small[0][:1], classes[:1], found["saliency"][:1])
        assert abs(ours - np.trapezoid(curve)) < 1e-5


def test_equals_quantus_with_its_draws_seeded_for_each_image(network, small, classes, found):
    metric = "quantus:FaithfulnessCorrelation[nr_runs=20,subset_size=40]"
    ids = [7, 8, 9]
    ours = score(metric, network, small[0], classes, found["saliency"], image_ids=ids, seed=4)
    streams = Batch(network, small[0], classes, image_ids=ids, seed=4).generators(metric)
    for index, stream in enumerate(streams):
        np.random.seed(int(stream.integers(2**32)))  # noqa: NPY002  # the state that Quantus draws from
        (theirs,) = quantus.FaithfulnessCorrelation(
            nr_runs=20, subset_size=40, return_aggregate=False, disable_warnings=True
        )(
            model=network, x_batch=small[0][[index]].numpy(), y_batch=classes[[index]].numpy(),
            a_batch=found["saliency"][[index], None].double().numpy(), channel_first=True, device="cpu",
        )  # fmt: skip
        assert abs(ours[index] - theirs) < 1e-5
    assert ours.unique().numel() == 3


def test_explains_again_by_the_methods_of_the_cell(network, small, classes, found):
    (image,), (target,) = small[0][:1], classes[:1]
    spec = "quantus:RandomLogit"
    values = {m: score(spec, network, image[None], target[None], found[m][:1], method=m)[0] for m in found}
    for method, value in values.items():
        given = found[method][0].double().numpy().reshape(1, -1)
        others = {
            k: attribution.explain(network, image[None], torch.tensor([k]), method)[0].double().numpy().reshape(1, -1)
            for k in range(10) if k != int(target)
        }  # fmt: skip
        scaled = {k: other / np.abs(other).max() for k, other in others.items()}
        distance = [
            abs(float(value) - quantus.ssim(given / np.abs(given).max(), other, batched=True)[0])
            for other in scaled.values()
        ]
        assert min(distance) < 1e-5
    with pytest.raises(ValueError, match="quantus:RandomLogit explains again"):
        score(spec, network, image[None], target[None], found["saliency"][:1])
    with pytest.raises(ValueError, match="quantus:RandomLogit contrasts classes, and eigen_cam explains none"):
        score(spec, network, image[None], target[None], found["saliency"][:1], method="eigen_cam")


def test_the_mean_over_randomised_layers_leaves_the_network_itself_out(network, small, classes, found):
    ours = score("quantus:MPRT", network, small[0][:1], classes[:1], found["saliency"][:1], method="saliency")

    def explain(model, inputs, targets, **_):
        given = attribution.explain(model, torch.as_tensor(inputs), torch.as_tensor(targets), "saliency")
        return given[:, None].double().numpy()

    with torch.random.fork_rng():
        by_layer = quantus.MPRT(disable_warnings=True)(
            model=network, x_batch=small[0][:1].numpy(), y_batch=classes[:1].numpy(),
            a_batch=found["saliency"][:1, None].double().numpy(), explain_func=explain, device="cpu",
            channel_first=True,
        )  # fmt: skip
    assert by_layer["original"] == pytest.approx([1.0])
    assert abs(ours - np.mean([value for name, (value,) in by_layer.items() if name != "original"])) < 1e-5


def test_a_layer_that_is_named_is_explained_in_the_copies_too(network, small, classes, monkeypatch):
    layer = network.backbone.layer1
    maps = attribution.explain(network, small[0], classes, "layer_cam", layer=layer)
    seen = []
    explain_many = attribution.explain_many
    monkeypatch.setattr(
        attribution, "explain_many", lambda batch, methods: seen.append(batch) or explain_many(batch, methods)
    )
    score(
        "quantus:MPRT[skip_layers=true]", network, small[0][:1], classes[:1], maps[:1], method="layer_cam", layer=layer
    )
    assert [batch.layer is batch.model.backbone.layer1 for batch in seen] == [True, True]
    assert [batch.model is network for batch in seen] == [True, False]


def test_maps_that_quantus_refuses_are_undefined(network, small, classes, found):
    broken = found["saliency"].clone()
    broken[0] = 0.5
    broken[1] = -broken[1] - 1e-3
    for metric in ("quantus:Complexity", "quantus:AvgSensitivity[nr_samples=1]"):
        values = score(metric, network, small[0], classes, broken, method="saliency")
        assert values.isnan().tolist() == [True, True, False]

    class Blind(nn.Module):
        def forward(self, given):
            return torch.stack([given.sum((1, 2, 3)) * 0, given.mean((1, 2, 3))], 1)

    # All that is explained again is zero.
    again = score(
        "quantus:AvgSensitivity[nr_samples=1]", Blind().eval(), small[0], torch.zeros(3, dtype=torch.int64),
        found["saliency"], method="saliency",
    )  # fmt: skip
    assert again.isnan().all()


def test_grey_images_that_are_not_square():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    images, targets = torch.rand(2, 1, 16, 24, generator=generator), torch.tensor([0, 2])
    maps = attribution.explain(model, images, targets, "input_x_gradient")
    for name in ("PixelFlipping", "IROF", "RelativeRepresentationStability", "Continuity"):
        values = score(quick(name).spec, model, images, targets, maps, method="input_x_gradient")
        assert values.shape == (2,)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("quantus:PixelFliping", "there is no metric 'quantus:PixelFliping'; did you mean 'quantus:PixelFlipping'?"),
        (
            "quantus:Complexity[epsilon=1]",
            "quantus:Complexity has no parameter 'epsilon'; choose from protocol, abs, normalise",
        ),
        ("quantus:Complexity[abs=1]", "quantus:Complexity: abs must be true or false, not 1"),
        (
            "quantus:PixelFlipping[perturb_baseline=blak]",
            "quantus:PixelFlipping: perturb_baseline must be black or white or mean or uniform, not 'blak'",
        ),
        (
            "quantus:PixelFlipping[features_in_step=0]",
            "quantus:PixelFlipping: features_in_step must be a whole number of at least 1, not 0",
        ),
        ("quantus:ROAD", f"quantus:ROAD cannot be had: {REFUSED['ROAD']}"),
    ],
)
def test_what_cannot_be_had_is_refused_in_one_sentence(metric, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the message is compared below
        resolve(metric)
    assert str(error.value) == message


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_class_names_what_to_use_instead(name):
    with pytest.raises(ValueError, match=rf"^quantus:{name} cannot be had: it .*; use \w+"):
        resolve(f"quantus:{name}")


def test_what_quantus_itself_refuses_names_the_spec_and_leaves_no_trace(network, small, classes, found):
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state(), np.geterr()  # noqa: NPY002
    had_trapz, handlers = hasattr(np, "trapz"), list(logging.getLogger().handlers)
    with pytest.raises(ValueError, match=r"^quantus:PixelFlipping\[features_in_step=7\]: .*144 % 7 != 0"):
        score("quantus:PixelFlipping[features_in_step=7]", network, small[0], classes, found["saliency"])
    assert (random.getstate(), np.geterr()) == (states[0], states[3])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    assert (hasattr(np, "trapz"), logging.getLogger().handlers) == (had_trapz, handlers)


def test_the_spec_is_a_metric_and_no_plugin():
    spec = resolve("quantus:PixelFlipping", features_in_step=48).spec
    assert spec == "quantus:PixelFlipping[features_in_step=48]"
    assert specs.tracking_name(spec) == "quantus:PixelFlipping:features_in_step:48"
    valid, refused = evaluation.cells(["saliency"], [spec, "quantus:AUC", "quantus:MPRT"], has_masks=False)
    assert valid == [Cell("saliency", spec), Cell("saliency", "quantus:MPRT")]
    assert [cell.metric for cell, _ in refused] == ["quantus:AUC"]
    assert evaluation.cell_version(valid[0]) == "1-1000006000"
    assert evaluation.forward_passes(valid[:1], 12) > 0
    assert cost([("saliency", spec)], 12) == 9
    order = resolve("quantus:RegionPerturbation[order=lerf]")
    assert order.entry.better(order.parameters) == "lower"
    demo = Path(__file__).parents[2] / "sweeps/demo.yaml"
    sweep = config.load(demo, [f"evaluation.metrics=[complexity, '{spec}']"])
    assert sweep.plugin_names() == []
    assert spec in str(sweep.evaluation.metrics)


def test_it_is_quiet_and_leaves_no_trace(network, small, classes, found, capfd):
    handlers = list(logging.getLogger().handlers)
    score("quantus:PixelFlipping[features_in_step=48]", network, small[0], classes, found["saliency"])
    score("quantus:AttributionLocalisation[abs=false]", network, small[0], classes, found["saliency"], masks=small[1])
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().handlers == handlers
    from quantus.helpers.model.pytorch_model import PyTorchModel

    assert PyTorchModel._get_last_softmax_layer_index.cache_info().currsize == 0


def test_quantus_is_imported_only_when_it_is_asked_for():
    # It takes seconds, which no worker should spend that asks for none of its metrics.
    for source in Path(scl_ray.__file__).parent.rglob("*.py"):
        assert not re.search(r"^(import|from) quantus", source.read_text(), re.MULTILINE), source
