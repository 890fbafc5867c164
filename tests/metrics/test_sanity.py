"""What must hold of every metric of faithfulness: it tells explanations from noise."""

import math

import pytest

from scl_ray.attribution import Batch, explain_many
from scl_ray.metrics import METRICS, resolve, score_many

FAITHFUL = ["grad_cam", "integrated_gradients[steps=20]"]
# With fewer passes than by default, where those are many.
QUICK = {
    "sensitivity_n": "sensitivity_n[runs=30]",
    "monotonicity_correlation": "monotonicity_correlation[features_per_step=64,samples=4]",
    "irof": "irof[segments=40]",
}
METRIC = [QUICK.get(name, name) for name, metric in METRICS.items() if metric.facet == "faithfulness"]


@pytest.fixture(scope="module")
def means(network, images, targets, reference, digits):
    """The mean over 32 images of each method and metric."""
    batch = Batch(network, images, targets, mean=digits.mean, std=digits.std, reference=reference[0],
                  reference_labels=reference[1])  # fmt: skip
    methods = [*FAITHFUL, "random"]
    cells = [(method, metric) for method in methods for metric in METRIC]
    scores = score_many(batch, explain_many(batch, methods), cells)
    return {cell: found.values.nanmean().item() for cell, found in scores.items()}


@pytest.mark.parametrize("metric", [metric for metric in METRIC if metric != "sufficiency"])
def test_noise_is_less_faithful_than_what_explains(means, metric):
    better = resolve(metric).entry.direction
    for method in FAITHFUL:
        gain = means[method, metric] - means["random", metric]
        assert (gain < 0) == (better == "lower"), (method, gain)


def test_no_image_has_noise_like_another(means):
    # So there is nothing that could suffice: undefined for all.
    assert math.isnan(means["random", "sufficiency"])
    # Ten classes: like maps must mean more than chance.
    assert all(means[method, "sufficiency"] > 0.1 for method in FAITHFUL)
