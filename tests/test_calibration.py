"""Calibration against bins counted by hand, scikit-learn and the optimum itself, on real digits."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from torch.nn import functional

from scl_ray import readout
from scl_ray.calibration import expected_calibration_error, fit_temperature, negative_log_likelihood


@pytest.fixture(scope="module")
def scores() -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines of held-out digits with the mean digits of few, as logits, and their labels."""
    pixels, digits = (torch.tensor(array) for array in load_digits(return_X_y=True))
    x = functional.normalize(pixels.float(), dim=1)
    return 20 * x[300:] @ readout.prototypes(x[:300], digits[:300], 10).T, digits[300:]


def logits_of(*probabilities: list[float]) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


class TestTemperature:
    def test_minimises_the_cross_entropy_of_held_out_images(self, scores):
        logits, truth = scores
        plain = minimize_scalar(
            lambda t: float(functional.cross_entropy(logits.double() / math.exp(t), truth)),
            bounds=(-5, 5),
            method="bounded",
        )
        # The smoothing is worth about one image more that is in doubt.
        assert fit_temperature(logits, truth) == pytest.approx(math.exp(plain.x), rel=0.1)
        many = logits.repeat(20, 1), truth.repeat(20)
        assert fit_temperature(*many) == pytest.approx(math.exp(plain.x), rel=0.01)

    def test_scales_with_the_logits(self, scores):
        logits, truth = scores
        once = fit_temperature(logits, truth)
        assert fit_temperature(4 * logits, truth) == pytest.approx(4 * once, rel=1e-5)

    def test_calibrates(self, scores):
        logits, truth = scores
        overconfident = 5 * logits
        calibrated = overconfident / fit_temperature(overconfident, truth)
        confidence, prediction = calibrated.softmax(dim=1).max(dim=1)
        # Not equal: the smallest cross-entropy of one number, not the smallest error of calibration.
        assert confidence.mean().item() == pytest.approx((prediction == truth).double().mean().item(), abs=0.03)
        assert expected_calibration_error(calibrated, truth) < expected_calibration_error(overconfident, truth)
        assert negative_log_likelihood(calibrated, truth) < negative_log_likelihood(overconfident, truth)

    def test_of_a_read_out_without_errors_is_finite(self):
        truth = torch.arange(100) % 10
        temperature = fit_temperature(10.0 * functional.one_hot(truth, 10), truth)
        # The best confidence is then 1 - 1 / (N + 2) in every image.
        logit = math.log((101 / 102) / (1 / 102 / 9))
        assert temperature == pytest.approx(10 / logit, rel=1e-4)


class TestExpectedCalibrationError:
    def test_by_hand(self):
        # 0.92 and 0.88 share the bin from 13/15 to 14/15; 0.62 is alone in that from 9/15 to 10/15.
        logits = logits_of([0.92, 0.08], [0.12, 0.88], [0.62, 0.38])
        labels = torch.tensor([0, 0, 1])
        expected = 2 / 3 * abs((0.92 + 0.88) / 2 - 1 / 2) + 1 / 3 * abs(0.62 - 0)
        assert expected_calibration_error(logits, labels) == pytest.approx(expected, abs=1e-12)

    def test_errors_of_two_bins_do_not_cancel(self):
        logits = logits_of([0.6 + 0.02, 0.38], [0.98, 0.02])  # right and unsure, wrong and sure
        expected = (abs(0.62 - 1) + abs(0.98 - 0)) / 2
        assert expected_calibration_error(logits, torch.tensor([0, 1])) == pytest.approx(expected, abs=1e-12)

    def test_of_confidence_that_is_the_accuracy_is_zero(self):
        logits = logits_of([0.7, 0.2, 0.1]).repeat(10, 1)
        labels = torch.tensor([0] * 7 + [1] * 3)
        assert expected_calibration_error(logits, labels) == pytest.approx(0, abs=1e-12)

    def test_of_certainty_is_the_share_of_errors(self):
        # In float32 or float64, a softmax of 1 belongs to the last bin.
        logits = torch.tensor([[1000.0, 0.0]]).repeat(10, 1)
        labels = torch.tensor([0] * 7 + [1] * 3)
        assert expected_calibration_error(logits, labels) == pytest.approx(0.3, abs=1e-12)

    def test_is_the_formulas(self, scores):
        logits, labels = 3 * scores[0], scores[1]  # overconfident
        probabilities = logits.double().softmax(dim=1).numpy()
        confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels.numpy()
        expected = 0.0
        for bin in range(15):
            inside = (confidence > bin / 15) & (confidence <= (bin + 1) / 15)
            if inside.any():
                expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
        assert expected > 0.05
        assert expected_calibration_error(logits, labels) == pytest.approx(expected, abs=1e-12)


def test_negative_log_likelihood_is_scikit_learns(scores):
    logits, labels = scores
    expected = log_loss(labels.numpy(), logits.double().softmax(dim=1).numpy(), labels=np.arange(10))
    assert negative_log_likelihood(logits, labels) == pytest.approx(expected, rel=1e-12)


def test_negative_log_likelihood_of_certainty_is_finite():
    assert negative_log_likelihood(torch.tensor([[1e6, 0.0]]), torch.tensor([1])) == pytest.approx(1e6)
