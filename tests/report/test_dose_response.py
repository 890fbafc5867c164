"""Measures against an objective's parameter: each number against statsmodels or what was put in."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats

from scl_ray.report import dose_response
from scl_ray.report.terms import MEASURE, VIEW

DOSES = (0.05, 0.1, 0.2, 0.4)


def grid(response, *, seeds: int = 4, parameter: str = "temperature", doses=DOSES) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Means and trials of a grid in which *response* (dose → mean) has noise over seeds of 0.01."""
    trials = [(f"{dose}-{seed}", "supcon", f"supcon {dose}", seed, dose) for dose in doses for seed in range(seeds)]
    trials += [(f"ce-{seed}", "cross_entropy", "cross_entropy", seed, np.nan) for seed in range(seeds)]
    table = pd.DataFrame(trials, columns=["trial", "objective", "objective_label", "seed", parameter])
    table = table.assign(backbone="resnet18", dataset="cifar10")
    values = [0.4 if np.isnan(dose) else response(dose) for dose in table[parameter]]
    values += np.random.default_rng(1).normal(0, 0.01, len(table))
    means = table[["trial", "objective_label", "seed"]].assign(
        backbone="resnet18", protocol="corrected", facet="complexity", metric="complexity", method="grad_cam",
        direction="lower", mean=values)  # fmt: skip
    return means, table


def recipes(trials: pd.DataFrame) -> dict[str, object]:
    return {trial: {"epochs": 1} for trial in trials["trial"]}


def test_slope_and_lack_of_fit_agree_with_statsmodels():
    means, trials = grid(lambda dose: 0.5 + 0.02 * np.log2(dose) ** 2)
    doses, slopes = dose_response.tables(means, trials, recipes(trials))
    assert list(doses["dose"]) == list(DOSES)
    data = means.merge(trials[["trial", "temperature"]]).dropna().assign(x=lambda t: np.log2(t["temperature"]))
    line, saturated = (smf.ols(formula, data).fit() for formula in ("mean ~ x", "mean ~ C(x)"))
    row = slopes.iloc[0]
    assert (row["slope"], row["p"]) == pytest.approx((line.params["x"], line.pvalues["x"]))
    assert (row["low"], row["high"]) == pytest.approx(tuple(line.conf_int().loc["x"]))
    assert row["p_straight"] == pytest.approx(saturated.compare_f_test(line)[1])
    assert (row["objective"], row["parameter"], row["others"], row["scale"]) == (
        "supcon",
        "temperature",
        "",
        "doubling",
    )
    assert (row["doses"], row["trials"]) == (4, 16)
    at = data.loc[data["temperature"] == 0.2, "mean"]
    band = doses.set_index("dose").loc[0.2]
    assert (band["low"], band["high"]) == pytest.approx(stats.t.interval(0.95, 3, at.mean(), stats.sem(at)))
    assert (band["mean"], band["spread"], band["seeds"]) == pytest.approx((at.mean(), at.std(), 4))


@pytest.mark.parametrize(("change", "verdict"), [(-0.05, "better"), (0.05, "worse"), (0.0, "not decided")])
def test_the_verdict_follows_the_direction(change, verdict):
    means, trials = grid(lambda dose: 0.5 + change * np.log2(dose))
    row = dose_response.tables(means, trials, recipes(trials))[1].iloc[0]
    assert row["verdict"] == verdict
    assert row["slope"] == pytest.approx(
        change, abs=0.0067
    )  # three standard errors: 0.01 / sqrt(4 · (1.5² + 0.5²) · 2)


def test_slopes_and_straightness_keep_their_level():
    """No response at all, in 500 measures: a slope, and a bend, in about 5 %."""
    means, trials = grid(lambda dose: 0.5)
    rng = np.random.default_rng(2)
    many = pd.concat([means.assign(metric=f"m{k}", mean=rng.normal(size=len(means))) for k in range(500)])
    _, slopes = dose_response.tables(many, trials, recipes(trials))
    # Two standard errors of 5 % among 500 are 2 points.
    assert 0.03 <= np.mean(slopes["p"] < 0.05) <= 0.07
    assert 0.03 <= np.mean(slopes["p_straight"] < 0.05) <= 0.07
    assert not (slopes["verdict"] != "not decided").any()


def test_two_seeds_decide_nothing_and_zero_has_no_logarithm():
    means, trials = grid(lambda dose: 0.5 + dose, seeds=2, parameter="margin", doses=(0.0, 0.5, 1.0))
    row = dose_response.tables(means, trials, recipes(trials))[1].iloc[0]
    assert (row["scale"], row["verdict"]) == ("unit", "not decided")
    assert row["slope"] == pytest.approx(1, abs=0.05)
    assert row["p"] < 0.001


def test_what_else_varies_is_held_fixed():
    means, trials = grid(lambda dose: dose)
    trials["mining"] = np.where(trials["trial"].str.endswith(("0", "1")), "hard", "semi_hard")
    doses, _ = dose_response.tables(means, trials, recipes(trials))
    assert sorted(set(doses["others"])) == ["mining=hard", "mining=semi_hard"]
    assert set(doses["seeds"]) == {2}
    apart = {trial: trial.startswith("0.05") for trial in trials["trial"]}  # another recipe is no other dose
    doses, slopes = dose_response.tables(means, trials.drop(columns="mining"), apart)
    assert set(doses["dose"]) == {0.1, 0.2, 0.4}
    assert slopes["doses"].tolist() == [3]


def test_a_grid_without_doses_has_empty_tables():
    means, trials = grid(lambda dose: dose, doses=(0.1,))
    for table in dose_response.tables(means, trials, recipes(trials)):
        assert table.empty
        assert {*VIEW, *MEASURE, "objective", "parameter"} <= set(table)


def test_a_trial_without_a_dose_is_in_no_series():
    means, trials = grid(lambda dose: 0.5 + 0.02 * np.log2(dose))
    without = trials.assign(objective="supcon")  # cross-entropy's, under the same name
    of_dosed, of_all = (dose_response.tables(means, table, recipes(table))[1] for table in (trials, without))
    pd.testing.assert_frame_equal(of_dosed, of_all)
