"""What a trained network becomes: measures of real digits, computed again by scikit-learn, scipy and numpy."""

import dataclasses
import json
import math

import fsspec
import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, silhouette_score
from torch.nn import functional

from scl_ray import datasets, finishing, readout, training
from scl_ray.config import DatasetConfig, Trial
from scl_ray.measures import MEASURES
from scl_ray.store import Store


@pytest.fixture(scope="module")
def digits() -> datasets.Dataset:
    """The digits at a quarter of the usual number of pixels."""
    return datasets.load(DatasetConfig(name="digits", image_size=16))


def trial(objective: str) -> Trial:
    settings = {"epochs": 2, "batch_size": 64, "learning_rate": 0.05, "augmentation": "crop"}
    return Trial(dataset=DatasetConfig(name="digits"), objective={"name": objective}, backbone="resnet8", seed=0,
                 training=settings)  # fmt: skip


@pytest.fixture(scope="module", params=["cross_entropy", "supcon"])
def finished(request, digits):
    """The trial, the trained state, checkpoint and measures."""
    point = trial(request.param)
    *_, (_, state) = training.fit(digits, point)
    return point, state, *finishing.finish(digits, point, state)


def embedded(checkpoint, images) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (checkpoint.mean, checkpoint.std))
    with torch.no_grad():
        return checkpoint.backbone((torch.tensor(images) / 255 - mean) / std)


def test_what_is_measured_is_what_the_table_says(finished):
    point, _, _, measured = finished
    expected = {name for name in MEASURES if point.objective.name == "cross_entropy" or "own_layer" not in name}
    assert {name for name in measured if not name.startswith("validation_")} == expected
    validation = {f"validation_{name}" for name in expected if name.startswith("accuracy/")}
    assert {name for name in measured if name.startswith("validation_")} == validation
    for name, value in measured.items():
        low, high = MEASURES[name.removeprefix("validation_")].bounds
        assert low <= value <= high, name
        assert math.isfinite(value), name
    assert measured["accuracy/linear_probe"] > 0.7
    assert measured["geometry/silhouette"] > 0


def test_every_measure_has_a_meaning_and_a_source():
    for name, measure in MEASURES.items():
        assert measure.meaning, name
        assert measure.source or name == "accuracy/own_layer", name


@pytest.mark.parametrize("protocol", ["corrected", "published"])
def test_calibration_is_that_of_what_is_explained(finished, digits, protocol):
    _, _, checkpoint, measured = finished
    explained = checkpoint.explained(protocol)
    with torch.no_grad():
        scores = explained.readout(embedded(checkpoint, digits.test_images)).double().numpy()
    use = {"corrected": "_scaled", "published": "_published"}[protocol]
    # The features of other batches differ in the last digits of float32.
    expected = -log_softmax(scores, axis=1)[np.arange(len(scores)), digits.test_labels].mean()
    assert measured[f"calibration/nll{use}"] == pytest.approx(expected, rel=1e-4)
    confidence, right = softmax(scores, axis=1).max(axis=1), scores.argmax(axis=1) == digits.test_labels
    bins = np.ceil(15 * confidence) - 1
    errors = [abs((right[bins == b] - confidence[bins == b]).sum()) for b in range(15)]
    # One image whose confidence is rounded into the next bin may move 1/360 of it.
    assert measured[f"calibration/ece{use}"] == pytest.approx(sum(errors) / len(right), abs=2 / 360)


def test_own_layer_is_published_as_it_is(finished):
    point, _, _, measured = finished
    same = measured["calibration/nll"] == measured["calibration/nll_published"]
    assert same == (point.objective.name == "cross_entropy")


def test_the_temperature_lowers_the_validation_loss_of_the_read_out(finished, digits):
    _, _, checkpoint, measured = finished
    scores = checkpoint.explained("corrected").readout(embedded(checkpoint, digits.validation_images))
    truth = torch.tensor(digits.validation_labels)
    scaled = functional.cross_entropy(scores, truth)
    assert scaled <= functional.cross_entropy(scores * measured["temperature"], truth) + 1e-3


def test_every_objective_has_a_probe_on_normalised_features(finished, digits):
    _, _, checkpoint, measured = finished
    known, asked = (
        functional.normalize(embedded(checkpoint, images), dim=1).double().numpy()
        for images in (digits.train_images, digits.test_images)
    )
    probe = LogisticRegression(C=1 / (len(known) * readout.PENALTY), tol=1e-6, max_iter=5000)
    predicted = probe.fit(known, digits.train_labels).predict(asked)
    expected = accuracy_score(digits.test_labels, predicted)
    assert measured["accuracy/linear_probe"] == pytest.approx(expected, abs=2 / 360)  # an image may lie on a border


def test_geometry_is_that_of_test_images_and_collapse_that_of_training_images(finished, digits):
    _, _, checkpoint, measured = finished
    asked = embedded(checkpoint, digits.test_images).double().numpy()
    expected = silhouette_score(asked, digits.test_labels, metric="cosine")
    assert measured["geometry/silhouette"] == pytest.approx(expected, abs=1e-5)
    known = embedded(checkpoint, digits.train_images)
    read = functional.normalize(known, dim=1) if checkpoint.readout == "linear_probe" else known
    read, own = read.double().numpy(), digits.train_labels
    means = np.stack([read[own == label].mean(axis=0) for label in range(10)])
    centred, weight = means - means.mean(axis=0), checkpoint.weight.double().numpy()
    distance = np.linalg.norm(weight / np.linalg.norm(weight) - centred / np.linalg.norm(centred))
    assert measured[f"geometry/nc3/{checkpoint.readout}"] == pytest.approx(distance, abs=1e-5)


def test_what_is_undefined_is_null_in_the_record(finished, digits, tmp_path):
    point, state, _, _ = finished
    one = digits.test_labels == 3
    alone = dataclasses.replace(
        digits,
        test_images=digits.test_images[one],
        test_labels=digits.test_labels[one],
        evaluation_order=np.arange(one.sum()),
    )
    _, measured = finishing.finish(alone, point, state)
    undefined = {name for name, value in measured.items() if value is None}
    assert undefined == {"geometry/silhouette", "geometry/within_between_ratio"}
    store = Store(fsspec.filesystem("file"), str(tmp_path))
    store.write_record("0123456789ab", {"metrics": measured})
    record = json.loads((tmp_path / "trials/0123456789ab.json").read_text())
    assert record["metrics"] == measured
