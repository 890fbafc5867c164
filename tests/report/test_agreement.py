"""Rank correlations and ranks of methods, against scipy, Demšar's table and what was put in."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from scl_ray.report import agreement
from scl_ray.report.terms import MEASURE, VIEW
from scl_ray.report.view_scores import ViewScores

NAMES = dict(zip(("trials", "over_trials", "objectives", "over_objectives", "p_over_objectives", "within_objectives",
                  "p_within_objectives"), range(7), strict=True))  # fmt: skip


def networks(per_objective: int = 6, objectives: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two properties that go together between objectives and against each other within."""
    rng = np.random.default_rng(0)
    labels = np.repeat([f"o{k}" for k in range(objectives)], per_objective)
    level, own = np.repeat(np.arange(objectives) * 10.0, per_objective), rng.normal(size=len(labels))
    return level + own, level - own + 0.1 * rng.normal(size=len(labels)), labels


def test_correlations_tell_between_from_within():
    values, others, labels = networks()
    found = agreement.correlations(values, others, labels)
    assert found[NAMES["over_trials"]] == pytest.approx(stats.spearmanr(values, others).statistic)
    assert found[NAMES["over_objectives"]] == 1
    # Of 120 orders of five objectives two are as extreme.
    assert found[NAMES["p_over_objectives"]] == pytest.approx(2 / 120)
    assert found[NAMES["within_objectives"]] < -0.9
    assert found[NAMES["p_within_objectives"]] < 1e-6
    assert (found[NAMES["trials"]], found[NAMES["objectives"]]) == (30, 5)


def test_many_objectives_are_tested_by_t_and_missing_values_left_out():
    values, others, labels = networks(per_objective=1, objectives=12)
    rng = np.random.default_rng(1)
    others = rng.permutation(others)
    others[3] = np.nan
    found = agreement.correlations(values, others, labels)
    oracle = stats.spearmanr(values, others, nan_policy="omit")
    assert found[NAMES["over_objectives"]] == pytest.approx(oracle.statistic)
    assert found[NAMES["p_over_objectives"]] == pytest.approx(oracle.pvalue)
    assert np.isnan(found[NAMES["within_objectives"]])
    assert np.isnan(agreement.correlations(values[:3], others[:3], labels[:3])[1])


@pytest.mark.parametrize("objectives", [5, 9])
def test_the_tests_keep_their_level(objectives):
    """Properties that have nothing to do with each other, though each differs between objectives."""
    rng, found = np.random.default_rng(objectives), []
    labels = np.repeat(np.arange(objectives).astype(str), 4)
    for _ in range(600):
        one, other = (np.repeat(3 * rng.normal(size=objectives), 4) + rng.normal(size=len(labels)) for _ in range(2))
        found.append(agreement.correlations(one, other, labels))
    for name in ("p_over_objectives", "p_within_objectives"):
        # Two standard errors of 5 % among 600 are 1.8 points.
        assert np.mean(np.array(found)[:, NAMES[name]] < 0.05) <= 0.07
    naive = [stats.t.sf(abs(r) * np.sqrt((len(labels) - 2) / (1 - r**2)), len(labels) - 2) * 2
             for r in np.array(found)[:, NAMES["over_trials"]]]  # fmt: skip
    assert np.mean(np.array(naive) < 0.05) > 0.2  # which is why over_trials has no p-value


def view(values: np.ndarray, directions: list[str]) -> tuple[pd.DataFrame, ViewScores]:
    """*values* (measures, trials, images) of one method as a view, every image correct, and the trials' means."""
    rows = [("faithfulness", f"m{k}", "grad_cam", direction) for k, direction in enumerate(directions)]
    measures = pd.DataFrame(rows, columns=[*MEASURE, "direction"])
    trials = pd.DataFrame({"trial": [f"t{k}" for k in range(values.shape[1])], "objective_label": "a",
                           "seed": range(values.shape[1])})  # fmt: skip
    scores = ViewScores("resnet18", "corrected", measures, trials, np.arange(values.shape[2], dtype=np.int32),
                        values.astype(np.float32), np.ones(values.shape[1:], bool))  # fmt: skip
    means = [trials.assign(backbone="resnet18", protocol="corrected", **dict(zip(measures, row, strict=True)),
                           mean=np.nanmean(of, axis=1))
             for row, of in zip(measures.itertuples(index=False), values, strict=True)]  # fmt: skip
    return pd.concat(means, ignore_index=True), scores


def test_metrics_agree_when_better_is_better():
    rng = np.random.default_rng(2)
    one = rng.normal(size=(5, 40))
    other = 0.5 * one + rng.normal(size=(5, 40))
    means, scores = view(np.stack([one, -other]), ["higher", "lower"])
    row = agreement.of_metrics(means, [scores]).iloc[0]
    oracle = [stats.spearmanr(a, b).statistic for a, b in zip(one.astype("f4"), other.astype("f4"), strict=True)]
    assert row["over_images"] == pytest.approx(np.mean(oracle), abs=1e-6)  # ranks are held in float32
    half = stats.t.ppf(0.975, 4) * stats.sem(oracle)
    assert (row["images_low"], row["images_high"]) == pytest.approx((np.mean(oracle) - half, np.mean(oracle) + half))
    assert row["over_trials"] == pytest.approx(stats.spearmanr(one.mean(1), other.mean(1)).statistic)
    assert (row["metric"], row["other_metric"], row["trials"]) == ("m0", "m1", 5)


def test_an_undefined_image_does_not_spoil_the_others():
    rng = np.random.default_rng(3)
    one = rng.normal(size=(4, 200))
    both = np.stack([one, one + rng.normal(size=(4, 200))])
    whole = agreement.of_metrics(*_one(view(both, ["higher", "higher"])))["over_images"].iloc[0]
    both[1, 2, 7] = np.nan
    found = agreement.of_metrics(*_one(view(both, ["higher", "higher"])))["over_images"].iloc[0]
    assert found == pytest.approx(whole, abs=0.01)
    assert found != whole


def _one(made):
    return made[0], [made[1]]


def test_quality_goes_with_properties():
    rng = np.random.default_rng(4)
    quality = rng.normal(size=(1, 12, 30)) + np.arange(12)[None, :, None]
    means, _ = view(-quality, ["lower"])
    accuracy = means.assign(facet="accuracy", metric="accuracy", method="", direction="higher", mean=np.arange(12.0))
    properties = pd.DataFrame({"geometry/x": -np.arange(12.0), "calibration/y": 1.0}, index=means["trial"])
    found = agreement.with_properties(pd.concat([means, accuracy]), properties).set_index("property")
    assert found["over_trials"].to_dict() == pytest.approx({"geometry/x": -1, "accuracy": 1})
    assert (found["p_holm"] >= found["p_within_objectives"]).all()


def test_ranks_of_methods_and_demsars_critical_difference():
    # Demšar 2006, table 5: the Nemenyi quantiles at 5 % of 2 to 10 methods.
    quantiles = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 10: 3.164}
    rng = np.random.default_rng(5)
    for methods, quantile in quantiles.items():
        rows = [("resnet18", "corrected", "complexity", "complexity", "lower", f"method{m}", f"t{t}",
                 m + rng.normal(0, 0.3)) for m in range(methods) for t in range(15)]  # fmt: skip
        means = pd.DataFrame(rows, columns=[*VIEW, "facet", "metric", "direction", "method", "trial", "mean"])
        found = agreement.of_methods(means)
        critical = quantile * np.sqrt(methods * (methods + 1) / (6 * 15))
        assert found["critical_difference"].to_numpy() == pytest.approx(critical, abs=1e-3)
        assert found["rank"].is_monotonic_increasing
        assert found["best"].iloc[0]
        assert not found["best"].iloc[-1]
    wide = means.pivot(index="trial", columns="method", values="mean")
    assert found["p"].iloc[0] == pytest.approx(stats.friedmanchisquare(*wide.to_numpy().T).pvalue)
    flipped = agreement.of_methods(means.assign(direction="higher"))
    np.testing.assert_allclose(flipped["rank"], 11 - found["rank"])


def test_methods_that_are_alike_have_no_best():
    rng = np.random.default_rng(6)
    rows = [("resnet18", "corrected", "complexity", "complexity", "lower", method, f"t{t}", rng.normal())
            for method in ("a", "b", "c") for t in range(10)]  # fmt: skip
    means = pd.DataFrame(rows, columns=[*VIEW, "facet", "metric", "direction", "method", "trial", "mean"])
    assert not agreement.of_methods(means)["best"].any()
    two = agreement.of_methods(means[means["method"] != "c"])
    assert two["p"].iloc[0] == pytest.approx(stats.binomtest(round(10 * (2 - two["rank"].iloc[0])), 10).pvalue)


def test_a_method_without_any_value_leaves_the_others_their_ranks():
    rows = [(f"t{trial}", method, value if method != "c" else np.nan) for trial in range(6)
            for method, value in zip("abc", (0.1, 0.2, 0.3), strict=True)]  # fmt: skip
    means = pd.DataFrame(rows, columns=["trial", "method", "mean"]).assign(
        backbone="resnet18", protocol="corrected", facet="faithfulness", metric="auc", direction="lower")  # fmt: skip
    found = agreement.of_methods(means)
    assert dict(zip(found["method"], found["rank"], strict=True)) == {"a": 1, "b": 2}
