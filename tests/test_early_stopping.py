"""The measure by which trials are compared while they train, against scikit-learn and by hand."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.model_selection import LeaveOneOut
from sklearn.preprocessing import normalize

from scl_ray import datasets, training
from scl_ray.config import DatasetConfig, EarlyStopping, Trial
from scl_ray.early_stopping import prototype_accuracy


def test_prototypes_are_the_means_of_the_other_images():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 60)
    features = generator.normal(size=(60, 5)) + 0.5 * generator.normal(size=(4, 5))[labels]
    unit, right = normalize(features), 0
    for others, (image,) in LeaveOneOut().split(unit):
        prototypes = normalize([unit[others][labels[others] == label].mean(axis=0) for label in range(4)])
        right += (prototypes @ unit[image]).argmax() == labels[image]
    assert 0.3 < right / 60 < 0.9
    assert prototype_accuracy(torch.tensor(features), torch.tensor(labels), 4) == pytest.approx(right / 60)


def test_a_class_without_others_is_missed_and_one_without_images_is_never_met():
    features = torch.tensor([[1.0, 0.0], [-0.1, 0.99], [0.0, 1.0]])
    # The two of class 0 point away from each other, yet class 1, which has no image, is not nearer.
    assert prototype_accuracy(features[:2], torch.tensor([0, 0]), 2) == 1
    # Both are nearer to the one of class 2, which has no other to be near to.
    assert prototype_accuracy(features, torch.tensor([0, 0, 2]), 4) == 0


@pytest.mark.parametrize("objective", ["cross_entropy", "supcon"])
def test_every_objective_is_measured_when_asked(objective):
    digits = datasets.load(DatasetConfig(name="digits", image_size=16))
    few = dataclasses.replace(digits, train_images=digits.train_images[:64], train_labels=digits.train_labels[:64])
    settings = {"epochs": 1, "batch_size": 32, "augmentation": "crop"}
    trial = Trial(dataset=DatasetConfig(name="digits"), objective={"name": objective}, backbone="resnet8", seed=0,
                  training=settings)  # fmt: skip
    ((plain, state),) = training.fit(few, trial)
    ((measured, same),) = training.fit(few, trial, comparable=True)
    assert measured.keys() - plain.keys() == {EarlyStopping.MEASURE}
    assert all(torch.equal(state["network"][name], same["network"][name]) for name in state["network"])
    network, _ = training.build(few, trial, torch.device("cpu"))
    network.load_state_dict(same["network"])
    features = training.features(network.backbone, few, "validation", torch.device("cpu"))
    expected = prototype_accuracy(features, torch.tensor(few.validation_labels), 10)
    assert measured[EarlyStopping.MEASURE] == pytest.approx(expected)
