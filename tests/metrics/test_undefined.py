import pytest
import torch
from quick import QUICK_METRICS
from torch import nn

from scl_ray.metrics import METRICS, resolve, score
from scl_ray.metrics.undefined import CASES


def test_the_table_covers_every_metric():
    assert all(case in CASES for metric in METRICS.values() for case in metric.undefined)
    assert all("zero map" in resolve(metric).entry.undefined for metric in LOOKS)


# One metric does not look at the given map: it explains mosaics.
LOOKS = [metric for metric in QUICK_METRICS if metric != "grid_pointing_game"]


@pytest.mark.parametrize("metric", LOOKS)
@pytest.mark.parametrize("protocol", ["corrected", "published"])
def test_flat_and_infinite_maps_are_undefined(
    network, images, targets, maps, masks, digits, reference, metric, protocol
):
    broken = maps["saliency"][:6].clone()
    broken[0] = 0
    broken[1] = 0.25
    broken[2] = -3
    broken[3, 4, 4] = torch.nan
    broken[4, 4, 4] = torch.inf
    values = score(
        metric, network, images[:6], targets[:6], broken, method="saliency", masks=masks[:6], protocol=protocol,
        mean=digits.mean, std=digits.std, reference=reference[0],
    )  # fmt: skip
    assert values.isnan().tolist() == [True] * 5 + [False]


@pytest.mark.parametrize("metric", ["pointing_game", "attribution_localisation"])
def test_an_empty_mask_is_undefined(network, images, targets, maps, masks, metric):
    masks = masks.clone()
    masks[3] = False
    values = score(metric, network, images, targets, maps["grad_cam"], masks=masks)
    assert values.isnan().nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("metric", ["ssim_continuity", "ssim_contrastivity"])
def test_a_flat_changed_map_is_undefined(images, maps, metric):
    # Two classes whose weights are all negative: Grad-CAM's map of either is zero.
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    network = nn.Sequential(*layers).eval()
    nn.init.constant_(network[-1].weight, -1.0)
    targets = torch.zeros(len(images), dtype=torch.int64)
    assert score(metric, network, images, targets, maps["grad_cam"], method="grad_cam").isnan().all()
