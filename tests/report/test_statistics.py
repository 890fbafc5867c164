import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from scl_ray.report import statistics


@pytest.mark.parametrize("sizes", [(3, 3), (5, 3), (8, 20)])
def test_welch_agrees_with_statsmodels(sizes):
    rng = np.random.default_rng(0)
    values, reference = rng.normal(1.0, 0.3, sizes[0]), rng.normal(0.6, 0.1, sizes[1])
    found = statistics.welch(values, reference)
    oracle = CompareMeans(DescrStatsW(values), DescrStatsW(reference))
    assert found.p == pytest.approx(oracle.ttest_ind(usevar="unequal")[1], rel=1e-9)
    assert (found.low, found.high) == pytest.approx(oracle.tconfint_diff(usevar="unequal"), rel=1e-9)
    assert found.difference == pytest.approx(values.mean() - reference.mean())


def test_welch_by_hand():
    # Means 2 and 5, variances 1 and 1, n = 3: t = -3 / sqrt(2/3), 4 degrees of freedom.
    found = statistics.welch(np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0]))
    t = -3 / np.sqrt(2 / 3)
    assert found.p == pytest.approx(2 * stats.t.sf(-t, 4))
    half = stats.t.ppf(0.975, 4) * np.sqrt(2 / 3)
    assert (found.low, found.high) == pytest.approx((-3 - half, -3 + half))


@pytest.mark.parametrize(
    ("values", "reference"), [([1.0], [2.0, 3.0]), ([2.0, 2.0], [1.0, 1.0]), ([np.nan, 1.0], [0.0, 1.0])]
)
def test_welch_tells_nothing_where_nothing_varies_or_one_value_stands(values, reference):
    found = statistics.welch(np.array(values), np.array(reference))
    assert np.isfinite(found.difference)
    assert np.isnan([found.low, found.high, found.p]).all()


def test_holm_agrees_with_statsmodels():
    p = np.array([0.01, 0.04, 0.03, 0.005, 0.04, 0.9])
    np.testing.assert_allclose(statistics.holm(p), multipletests(p, method="holm")[1])
    # By hand: sorted 0.01, 0.03, 0.04 times 3, 2, 1, never falling.
    np.testing.assert_allclose(statistics.holm(np.array([0.01, 0.04, 0.03])), [0.03, 0.06, 0.06])


def test_holm_leaves_out_what_has_no_p():
    np.testing.assert_allclose(statistics.holm(np.array([0.02, np.nan, 0.01])), [0.02, np.nan, 0.02])


def _means(seeds: int, direction: str = "lower") -> pd.DataFrame:
    rows = [
        ("a view", metric, label, direction, truth + 0.01 * seed, 10, 1)
        for metric, truths in {"one": (0.5, 0.2), "two": (0.5, 0.505)}.items()
        for label, truth in zip(("reference", "other"), truths, strict=True)
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows, columns=["view", "metric", "objective_label", "direction", "mean", "images", "undefined"])


@pytest.mark.parametrize(("direction", "verdict"), [("lower", "better"), ("higher", "worse")])
def test_a_large_difference_is_decided_by_the_direction(direction, verdict):
    found = statistics.compare(_means(4, direction), ["view", "metric"], "reference", family=["view"])
    assert dict(zip(found["metric"], found["verdict"], strict=True)) == {"one": verdict, "two": "not decided"}
    np.testing.assert_allclose(found["p_holm"], multipletests(found["p"], method="holm")[1])


def test_two_seeds_decide_nothing():
    found = statistics.compare(_means(2), ["view", "metric"], "reference", family=["view"])
    assert found["p"].min() < 0.05
    assert set(found["verdict"]) == {"not decided"}


def test_over_seeds():
    found = statistics.over_seeds(_means(3), ["metric", "objective_label"])
    first = found.iloc[0]
    assert (first["mean"], first["spread"], first["seeds"]) == pytest.approx((0.51, 0.01, 3))
    assert (first["images"], first["undefined"]) == (30, 3)


def test_images_are_not_the_unit():
    """A hundred images more change no interval: only seeds do."""
    few, many = _means(3), _means(3).assign(images=1000)
    first, second = (statistics.compare(m, ["view", "metric"], "reference", family=["view"]) for m in (few, many))
    pd.testing.assert_frame_equal(first, second)
