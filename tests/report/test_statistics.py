import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.meta_analysis import effectsize_smd
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower
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


def test_rows_are_comparisons_and_missing_seeds_count_for_nothing():
    rng = np.random.default_rng(1)
    values, reference = rng.normal(size=(4, 5)), rng.normal(size=(4, 5))
    values[1, 2] = reference[2, 0] = np.nan
    values[3] = np.nan
    for test in (statistics.welch, statistics.ratio, statistics.standardised, statistics.paired):
        together = np.array(test(values + 9, reference + 9))
        apart = np.array([test(one + 9, other + 9) for one, other in zip(values, reference, strict=True)]).T
        np.testing.assert_allclose(together, apart)
        assert np.isnan(together[:, 3]).all()
    oracle = stats.ttest_ind(values[1], reference[1], equal_var=False, nan_policy="omit")
    assert statistics.welch(values, reference).p[1] == pytest.approx(oracle.pvalue)


def test_paired_agrees_with_scipy():
    rng = np.random.default_rng(2)
    values, reference = rng.normal(1, 1, 6), rng.normal(size=6)
    found, oracle = statistics.paired(values, reference), stats.ttest_rel(values, reference)
    assert found.p == pytest.approx(oracle.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(oracle.confidence_interval()))


def test_a_ratio_is_told_of_positive_values_alone():
    values, reference = np.array([2.0, 2.2, 1.8]), np.array([4.0, 4.1, 3.9])
    found = statistics.ratio(values, reference)
    assert found.estimate == pytest.approx(stats.gmean(values) / stats.gmean(reference))
    assert statistics.ratio(values, reference * 10).low == pytest.approx(found.low / 10)
    assert found.low < found.estimate < found.high < 1
    assert np.isnan(statistics.ratio(np.array([1.0, 2.0, -0.1]), reference)).all()


def test_the_standardised_difference_agrees_with_statsmodels_and_the_noncentral_t():
    rng = np.random.default_rng(3)
    values, reference = rng.normal(1.5, 1, 4), rng.normal(0, 1, 6)
    found = statistics.standardised(values, reference)
    oracle, _ = effectsize_smd(values.mean(), values.std(ddof=1), 4, reference.mean(), reference.std(ddof=1), 6)
    assert found.estimate == pytest.approx(oracle, rel=2e-3)  # its correction for bias is 1 - 3 / (4 n - 9)
    # Under the ends of the interval the observed t has 2.5 % on its far side.
    t, size = stats.ttest_ind(values, reference).statistic, np.sqrt(1 / 4 + 1 / 6)
    for end, share in ((found.low, 0.975), (found.high, 0.025)):
        assert stats.nct.cdf(t, 8, end / size) == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize(
    ("seeds", "difference", "variances", "alpha"),
    [(3, 3, (1, 1), 0.05), (3, 12, (1, 1), 0.002), (5, 4, (4, 1), 0.002), (5, 3, (0, 1), 0.01), (12, 2, (1, 2), 0.01)],
)
def test_power_is_the_share_of_sweeps_that_find_the_difference(seeds, difference, variances, alpha):
    rng, sweeps = np.random.default_rng(0), 20_000
    sides = [rng.normal(mean, np.sqrt(variance), (sweeps, seeds))
             for mean, variance in zip((difference, 0), variances, strict=True)]  # fmt: skip
    found = np.mean(statistics.welch(*sides).p < alpha)
    # Three standard errors of a share of the sweeps, and 0.004 for an average over sixteen points.
    assert statistics.power(difference, variances, seeds, alpha) == pytest.approx(found, abs=0.015)


def test_power_with_many_seeds_agrees_with_statsmodels():
    oracle = TTestIndPower().power(0.5, 60, 0.05)
    assert statistics.power(0.5 * 2, (4.0, 4.0), 60) == pytest.approx(oracle, abs=1e-3)


def test_seeds_needed():
    values = np.array([-1.0, 0.0, 1.0])  # variance 1 on both sides
    for difference in (0.3, 1.0, 2.0):
        needed = statistics.seeds_needed(values + difference, values)
        # The oracle's test knows that both sides spread alike, which spares it a seed where there are few.
        spared = needed - np.ceil(TTestIndPower().solve_power(difference, None, 0.05, 0.8))
        assert spared == 0 if difference < 2 else spared in (0, 1)
    for difference in (9, 40, 1e6):
        assert statistics.seeds_needed(values + difference, values) == statistics.FEWEST_SEEDS
    assert statistics.seeds_needed(values + 1, values, alpha=0.01) > statistics.seeds_needed(values + 1, values)
    assert statistics.seeds_needed(values, values) == np.inf
    assert np.isnan(statistics.seeds_needed(values[:1], values))


def test_holm_levels_are_what_holm_sets_p_against():
    p = np.array([0.01, np.nan, 0.02, 0.2])
    np.testing.assert_allclose(statistics.holm_levels(p), [0.05 / 3, np.nan, 0.05 / 2, 0.05])
    np.testing.assert_array_equal(p[[0, 2]] < statistics.holm_levels(p)[[0, 2]], statistics.holm(p)[[0, 2]] < 0.05)


def test_the_mean_over_seeds_has_students_interval():
    values = np.array([1.0, 2.0, 4.0])
    found = statistics.mean_over_seeds(values)
    assert tuple(found) == pytest.approx((7 / 3, *stats.t.interval(0.95, 2, 7 / 3, stats.sem(values))))


SWEEPS = 20_000
# Three standard errors of a rate of 5 % among that many sweeps are 0.005.


def recipes_alike(seeds: int, resemblance: float, sweeps: int = SWEEPS) -> tuple[np.ndarray, np.ndarray]:
    """Sweeps of two recipes that do not differ; in a quarter of them one varies four times as much or as little.
    *resemblance* is the correlation of networks of the same seed."""
    rng = np.random.default_rng(seeds)
    shared, own, other = rng.normal(size=(3, sweeps, seeds))
    spread = np.where(rng.random(sweeps) < 0.25, rng.choice([0.25, 4.0], sweeps), 1.0)[:, None]
    one, two = (np.sqrt(resemblance) * shared + np.sqrt(1 - resemblance) * side for side in (own, other))
    return one * spread, two


@pytest.mark.parametrize("resemblance", [0.0, 0.8])
@pytest.mark.parametrize("seeds", [3, 5])
def test_welch_and_paired_keep_their_level_whether_seeds_resemble_each_other_or_not(seeds, resemblance):
    one, other = recipes_alike(seeds, resemblance)
    rates = {test: np.mean(test(one, other).p < 0.05) for test in (statistics.welch, statistics.paired)}
    assert max(rates.values()) <= 0.06
    if not resemblance:
        # Of independent seeds Welch's test finds more, which is why it decides.
        found = {test: np.mean(test(one + 2, other).p < 0.05) for test in rates}
        assert found[statistics.welch] > found[statistics.paired] + 0.05


def test_without_the_small_sample_correction_a_bootstrap_over_seeds_is_far_above_its_level():
    """The rate of the corrected interval is at most 7 % at 3 and 5 seeds; its plain percentiles find 20 and 12 %."""
    for seeds, plain_rate in ((3, 0.17), (5, 0.10)):
        one, other = recipes_alike(seeds, 0.0, 1500)
        ends = np.array([statistics.bootstrap(*sides)[1:] for sides in zip(one, other, strict=True)])
        assert np.mean((ends[:, 0] > 0) | (ends[:, 1] < 0)) <= 0.07
        draws = np.random.default_rng(0).integers(seeds, size=(2, 500, seeds))
        resampled = one[:, draws[0]].mean(-1) - other[:, draws[1]].mean(-1)
        low, high = np.quantile(resampled, [0.025, 0.975], axis=1)
        assert np.mean((low > 0) | (high < 0)) > plain_rate


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_hold_the_truth_as_often_as_they_say(seeds):
    rng = np.random.default_rng(seeds)
    one, other = rng.normal(1.5, 1, (SWEEPS, seeds)), rng.normal(0, 1, (SWEEPS, seeds))
    size = statistics.standardised(one, other)
    assert size.estimate.mean() == pytest.approx(1.5, abs=0.02)  # its own standard deviation is 1.2 at three seeds
    ratio = statistics.ratio(np.exp(0.3 * one), np.exp(0.3 * other))
    # Welch's interval is somewhat too wide at three seeds a side; that of the standardised difference is exact.
    for found, truth, most in ((size, 1.5, 0.955), (ratio, np.exp(0.45), 0.975)):
        assert 0.945 <= np.mean((found.low < truth) & (truth < found.high)) <= most
