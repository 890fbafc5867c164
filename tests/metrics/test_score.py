import pytest
import torch
from torch import nn

from scl_ray.attribution import METHODS, Batch
from scl_ray.metrics import METRICS, cost, resolve, score, score_many


def test_what_the_registry_says_of_every_metric():
    for metric in METRICS.values():
        assert metric.direction in ("lower", "higher")
        assert metric.range[0] < metric.range[1]
        assert metric.needs <= {"masks", "class", "re-explanation"}
        assert metric.defaults["protocol"] == "corrected"
        assert metric.citation
    assert {name for name, metric in METRICS.items() if metric.curve} >= {"pixel_flipping_auc", "prediction_flip_auc"}
    assert resolve("ssim_continuity", noise=0.1).spec == "ssim_continuity[noise=0.1]"


def test_one_at_a_time_is_the_same_as_all_together(network, images, targets, maps, masks):
    cells = [
        (method, metric)
        for method in maps
        for metric, entry in METRICS.items()
        if METHODS[method].class_discriminative or "class" not in entry.needs
    ]
    together = score_many(Batch(network, images, targets, masks=masks), maps, cells)
    for method, metric in cells:
        alone = score(metric, network, images, targets, maps[method], method=method, masks=masks)
        assert torch.allclose(together[method, metric].values, alone, rtol=0, atol=1e-5, equal_nan=True)
        defined = alone[~alone.isnan()]
        low, high = METRICS[metric].range
        assert len(defined) >= 20
        assert ((low <= defined) & (defined <= high)).all()


def test_values_do_not_depend_on_the_batch(network, images, targets, maps, masks, digits):
    space = {"mean": digits.mean, "std": digits.std}
    for metric in METRICS:
        together = score(
            metric, network, images, targets, maps["grad_cam"], method="grad_cam", masks=masks,
            image_ids=range(32), **space,
        )  # fmt: skip
        parts = [
            score(
                metric, network, images[part], targets[part], maps["grad_cam"][part], method="grad_cam",
                masks=masks[part], image_ids=range(32)[part], **space,
            )
            for part in (slice(0, 1), slice(1, 8), slice(8, 32))
        ]  # fmt: skip
        assert torch.allclose(torch.cat(parts), together, rtol=0, atol=1e-5, equal_nan=True), metric


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
