import pytest
import torch
from quick import QUICK_METRICS
from torch import nn

from scl_ray.attribution import METHODS, Batch
from scl_ray.metrics import METRICS, check, cost, resolve, score, score_many

# These rank pixels, so that rounding may exchange two of them and change a value: rarely, and by little.
RANKING = {name for name, metric in METRICS.items() if metric.facet in ("faithfulness", "coherence")} | {
    "effective_complexity", "mprt", "smooth_mprt", "non_sensitivity",
}  # fmt: skip


def test_what_the_registry_says_of_every_metric():
    for metric in METRICS.values():
        assert metric.direction in ("lower", "higher")
        assert metric.range[0] < metric.range[1]
        assert metric.needs <= {"masks", "class", "re-explanation", "reference"}
        assert metric.defaults["protocol"] == "corrected"
        assert metric.citation
        # What runs changed images without gradients may do so at either precision.
        assert metric.passes is not None or "precision" not in metric.parameters
    assert resolve("ssim_continuity", noise=0.1).spec == "ssim_continuity[noise=0.1]"


@pytest.fixture(scope="module")
def given(images, targets, masks, reference, digits):
    """What every metric is called with, beside the network and the maps, for eight images."""
    return {
        "images": images[:8], "targets": targets[:8], "masks": masks[:8], "image_ids": list(range(8)),
        "reference": reference[0], "reference_labels": reference[1], "mean": digits.mean, "std": digits.std,
    }  # fmt: skip


@pytest.fixture(scope="module")
def together(network, maps, given):
    """All metrics of two methods, in one go."""
    cells = [
        (method, metric)
        for method in ("grad_cam", "eigen_cam")
        for metric in QUICK_METRICS
        if METHODS[method].class_discriminative or "class" not in resolve(metric).entry.needs
    ]
    return score_many(Batch(network, **given), {method: maps[method][:8] for method, _ in cells}, cells)


@pytest.mark.parametrize("metric", QUICK_METRICS)
def test_alone_and_in_parts_is_the_same_as_all_together(network, maps, given, together, metric):
    whole = together["grad_cam", metric].values
    parts = []
    for part in (slice(5, 8), slice(0, 1), slice(1, 5)):
        own = {key: value[part] if key in ("images", "targets", "masks", "image_ids") else value
               for key, value in given.items()}  # fmt: skip
        parts.append(score(metric, network, maps=maps["grad_cam"][:8][part], method="grad_cam", **own))
    parts = torch.cat([*parts[1:], parts[0]])
    assert torch.equal(parts.isnan(), whole.isnan())
    # Relative stabilities and the like are unbounded: rounding errors grow with them.
    apart = (parts - whole).abs() > 1e-5 * whole.abs().clamp_min(1)
    assert apart.sum() <= (1 if metric.partition("[")[0] in RANKING else 0)


def test_values_are_defined_and_in_range(together):
    for (_, metric), (values, curve) in together.items():
        defined = values[~values.isnan()]
        low, high = resolve(metric).entry.range
        assert len(defined) >= 6, metric
        assert ((low - 1e-6 <= defined) & (defined <= high + 1e-6)).all(), metric
        assert len(defined.unique()) > 1 or metric in ("pointing_game", "completeness"), metric
        assert (curve is not None) == (resolve(metric).entry.curve is not None)
        assert curve is None or curve.dtype == torch.float32


def test_the_users_own_metric(tmp_path, monkeypatch, network, images, targets, maps):
    (tmp_path / "own_metric.py").write_text(
        "def mass(model, images, targets, maps, power=1):\n    return maps.pow(power).sum((1, 2))\n"
        "mass.direction = 'lower'\n"
        "def sometimes(model, images, targets, maps):\n    return maps.sum((1, 2)) / (targets > 4)\n"
        "def wrong(model, images, targets, maps):\n    return maps.mean()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    given = (network, images, targets, maps["grad_cam"])
    assert torch.equal(score("own_metric:mass", *given, power=2), maps["grad_cam"].pow(2).sum((1, 2)))
    assert torch.equal(
        score("own_metric:mass[protocol=published]", *given, method="grad_cam"), maps["grad_cam"].sum((1, 2))
    )
    assert torch.equal(score("own_metric:sometimes", *given).isnan(), targets <= 4)
    assert (resolve("own_metric:mass").entry.facet, resolve("own_metric:mass").entry.direction) == ("user", "lower")
    assert resolve("own_metric:sometimes").entry.direction == "higher"
    assert resolve("own_metric:mass").entry.defaults == {"protocol": "corrected", "power": 1}
    with pytest.raises(ValueError, match=r"own_metric:wrong gave values of shape \(\), not one an image"):
        score("own_metric:wrong", *given)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("complexty", "there is no metric 'complexty'; did you mean 'complexity'?"),
        ("ssim_continuity[sigma=1]", "ssim_continuity has no parameter 'sigma'; choose from protocol, noise"),
    ],
)
def test_a_bad_metric_is_refused_in_one_sentence(network, images, targets, maps, metric, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the message is compared below
        score(metric, network, images, targets, maps["grad_cam"])
    assert str(error.value) == message


def test_maps_of_another_size_are_refused(network, images, targets, maps):
    with pytest.raises(ValueError, match=r"maps have shape \(3, 32, 32\), not \(32, 32, 32\)"):
        score("complexity", network, images, targets, maps["grad_cam"][:3])


@pytest.mark.parametrize("wrong", [lambda t: t[:3], lambda t: t.int(), lambda t: t.float(), lambda t: t[:, None]])
def test_targets_that_are_not_the_class_of_each_image_are_refused(network, images, targets, maps, wrong):
    with pytest.raises(ValueError, match=r"targets must be the class of each image, \(N,\) int64"):
        score("pixel_flipping_auc", network, images, wrong(targets), maps["grad_cam"])


@pytest.mark.parametrize("away", [-10, 10])
@pytest.mark.parametrize("metric", ["pixel_flipping_auc", "infidelity", "max_sensitivity"])
def test_classes_that_the_network_does_not_have_are_refused(network, images, targets, maps, metric, away):
    with pytest.raises(ValueError, match="targets must be classes from 0 to 9, as many as the model scores"):
        score(metric, network, images, targets + away, maps["grad_cam"], method="grad_cam")


@pytest.mark.parametrize(
    "metric", ["pointing_game[protocol=published]", "top_k_intersection[protocol=published]", "irof"]
)
def test_maps_and_images_may_come_with_a_graph_and_in_any_precision(network, images, targets, maps, masks, metric):
    given = {"model": network, "targets": targets[:2], "masks": masks[:2]}
    images, values = images[:2], maps["saliency"][:2].bfloat16()
    plain = score(metric, images=images, maps=values.float(), **given)
    graph = images.clone().requires_grad_()
    assert torch.equal(score(metric, images=graph, maps=values.requires_grad_(), **given), plain)


def test_what_is_kept_of_a_model_is_forgotten_with_what_it_depends_on(network, images, targets, maps, reference):
    cells = [("grad_cam", "sufficiency"), ("grad_cam", "mprt")]
    one = Batch(network, images[:4], targets[:4], reference=reference[0][::8])
    own = {"grad_cam": maps["grad_cam"][:4]}
    before = score_many(one, own, cells)
    for cell, changed in zip(cells, ({"reference": reference[0][1::8]}, {"seed": 1}), strict=True):
        found = score_many(one.but(**changed), own, cells)[cell].values
        fresh = Batch(network, images[:4], targets[:4], **({"reference": one.reference} | changed))
        assert torch.allclose(found, score_many(fresh, own, cells)[cell].values, rtol=0, atol=1e-5)
        assert (found - before[cell].values).abs().max() > 1e-3
    assert one.but(images=images[4:8], targets=targets[4:8]).kept is one.kept


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("faithfulness_correlation[subset_size=1024]", "a subset of 1024 leaves none"),
        ("sensitivity_n[n=1024]", "a subset of 1024 leaves none"),
        ("monotonicity_correlation[features_per_step=600]", "too few groups"),
        ("infidelity[patch_size=32]", "as one patch"),
        ("road[percent_per_step=100]", "leaves no pixel"),
        ("quantus:PixelFlipping[features_in_step=7]", "does not divide the 1024 pixels"),
    ],
)
def test_what_does_not_suit_the_size_has_no_cost(metric, message):
    with pytest.raises(ValueError, match=message):
        cost([("grad_cam", metric)], 32)


def test_more_pixels_than_an_image_has_are_refused_before_any_work(network, images, targets):
    check(Batch(network, images[:1], targets[:1]), ["top_k_intersection[k=1024]"])
    with pytest.raises(ValueError, match="k=1025 is more than the 1024 pixels"):
        check(Batch(network, images[:1], targets[:1]), ["top_k_intersection[k=1025]"])


def test_a_network_in_training_mode_is_refused(images, targets, maps):
    with pytest.raises(ValueError, match="training mode"):
        score("complexity", nn.Sequential(nn.Flatten()), images, targets, maps["grad_cam"])


def test_cost_counts_shared_passes_once():
    both = [("grad_cam", "pixel_flipping_auc"), ("grad_cam", "prediction_flip_auc")]
    assert cost(both, 32) == cost(both[:1], 32) == 32
    assert cost([("grad_cam", "pixel_flipping_auc[features_per_step=100]")], 32) == 11
    assert cost([("grad_cam", "ssim_continuity"), ("eigen_cam", "ssim_continuity")], 32) == 1
    assert cost([("grad_cam", "ssim_continuity"), ("grad_cam", "ssim_continuity[noise=0.1]")], 32) == 2
    assert cost([("grad_cam", "ssim_contrastivity"), ("grad_cam", "complexity")], 32) == 0
