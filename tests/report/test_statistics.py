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


def test_over_seeds():
    truths = (("one", "reference", 0.5), ("one", "other", 0.2), ("two", "reference", 0.4))
    rows = [(metric, label, truth + 0.01 * seed, 10, 1) for metric, label, truth in truths for seed in range(3)]
    means = pd.DataFrame(rows, columns=["metric", "objective_label", "mean", "images", "undefined"])
    first = statistics.over_seeds(means, ["metric", "objective_label"]).iloc[0]
    assert (first["mean"], first["spread"], first["seeds"]) == pytest.approx((0.51, 0.01, 3))
    assert (first["images"], first["undefined"]) == (30, 3)
