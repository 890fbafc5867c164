"""Splits that the labels alone decide."""

import numpy as np

from scl_ray.datasets.splits import stratified_order


def test_every_prefix_of_the_evaluation_order_is_stratified():
    labels = np.random.RandomState(1).choice(4, size=500, p=[0.6, 0.25, 0.1, 0.05])
    order = stratified_order(labels)
    assert sorted(order) == list(range(500))
    share = np.bincount(labels) / 500
    for length in range(1, 501):
        assert np.abs(np.bincount(labels[order[:length]], minlength=4) - share * length).max() < 1 + 1e-9
    assert np.array_equal(order, stratified_order(labels))
