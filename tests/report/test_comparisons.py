"""Comparisons with the reference objective, from seeds to a decision."""

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests

from scl_ray.report import comparisons


def means_of(seeds: int, direction: str = "lower") -> pd.DataFrame:
    rows = [
        ("a view", metric, label, seed, direction, truth + 0.01 * seed)
        for metric, truths in {"one": (0.5, 0.2), "two": (0.5, 0.505)}.items()
        for label, truth in zip(("reference", "other"), truths, strict=True)
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows, columns=["view", "metric", "objective_label", "seed", "direction", "mean"])


def compared(means: pd.DataFrame) -> pd.DataFrame:
    return comparisons.compare(means, ["view", "metric"], "reference", family=["view"])


@pytest.mark.parametrize(("direction", "verdict"), [("lower", "better"), ("higher", "worse")])
def test_a_large_difference_is_decided_by_the_direction(direction, verdict):
    found = compared(means_of(4, direction))
    assert dict(zip(found["metric"], found["verdict"], strict=True)) == {"one": verdict, "two": "not decided"}
    np.testing.assert_allclose(found["p_holm"], multipletests(found["p"], method="holm")[1])


def test_two_seeds_decide_nothing():
    found = compared(means_of(2))
    assert found["p"].min() < 0.05
    assert set(found["verdict"]) == {"not decided"}
