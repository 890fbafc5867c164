"""Whether conclusions stand: each check against what the data were made with."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from report import known_sweep as known

from scl_ray import results
from scl_ray.report import comparisons, sensitivity, statistics, tables, view_scores
from scl_ray.report.terms import MEASURE, VIEW


def means_of(accuracy: dict[str, list[float]], slope: float, *, noise: float = 0.002, metric: str = "irof"):
    """Attribution quality that follows accuracy with a *slope*, and 0.05 more for ``supcon``; with accuracy's rows."""
    rng, rows = np.random.default_rng(0), []
    for label, values in accuracy.items():
        for seed, value in enumerate(values):
            quality = 0.3 + slope * value + 0.05 * (label == "supcon") + rng.normal(0, noise)
            trial = f"{label}{seed}"
            rows += [(trial, label, seed, "accuracy", "accuracy", "", value),
                     (trial, label, seed, "faithfulness", metric, "grad_cam", quality)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["trial", "objective_label", "seed", *MEASURE, "mean"])
    return table.assign(backbone="resnet18", protocol="corrected", direction="higher", images=10, undefined=0)


OVERLAPPING = {"cross_entropy": [0.90, 0.92, 0.94, 0.96], "supcon": [0.88, 0.90, 0.92, 0.93], "triplet": [0.8, 0.84]}


def test_at_equal_accuracy_agrees_with_the_analysis_of_covariance():
    means = means_of(OVERLAPPING, slope=2.0)
    found = sensitivity.at_equal_accuracy(means, "cross_entropy").set_index("objective_label").loc["supcon"]
    wide = means.pivot(index=["trial", "objective_label"], columns="facet", values="mean").reset_index()
    oracle = smf.ols("faithfulness ~ C(objective_label) + accuracy", wide).fit()
    name = "C(objective_label)[T.supcon]"
    assert found["difference"] == pytest.approx(oracle.params[name])
    assert found["p"] == pytest.approx(oracle.pvalues[name])
    assert (found["low"], found["high"]) == pytest.approx(tuple(oracle.conf_int().loc[name]))
    # What was put in: a difference that accuracy hides, as it is lower under supcon.
    plain = comparisons.compare(means, [*VIEW, *MEASURE], "cross_entropy", VIEW).set_index(["objective_label", "facet"])
    assert found["low"] < 0.05 < found["high"]
    assert plain.loc[("supcon", "faithfulness"), "difference"] < 0.02


@pytest.mark.parametrize(
    ("accuracy", "reason"),
    [({"cross_entropy": [0.9, 0.91, 0.92], "supcon": [0.8, 0.81, 0.82]}, "no network of the one is as accurate"),
     ({"cross_entropy": [0.9, 0.91], "supcon": [0.9, 0.92]}, "too few networks"),
     ({"cross_entropy": [0.9] * 4, "supcon": [0.9] * 4}, "accuracy does not vary")],
)  # fmt: skip
def test_what_no_network_shows_is_not_told(accuracy, reason):
    found = sensitivity.at_equal_accuracy(means_of(accuracy, 1.0), "cross_entropy").iloc[0]
    assert found["note"].startswith(reason)
    assert np.isnan(found[["difference", "low", "high", "p"]].astype(float)).all()


def test_equal_accuracy_keeps_its_level():
    """Recipes that differ by their accuracy alone, four seeds each, are found different in at most 7 of 100 sweeps."""
    rng, sweeps, seeds = np.random.default_rng(5), 1000, 4
    frames = []
    for label, level in (("cross_entropy", 0.92), ("triplet", 0.9)):
        sweep, seed = (side.ravel() for side in np.indices((sweeps, seeds)))
        accuracy = rng.normal(level, 0.02, sweep.size)
        rows = pd.DataFrame({"trial": [f"{label}{k}" for k in range(sweep.size)], "seed": seed})
        rows = rows.assign(
            objective_label=label,
            backbone="resnet18",
            protocol=[f"p{k}" for k in sweep],
            direction="higher",
            images=10,
            undefined=0,
        )
        named = {"facet": "accuracy", "metric": "accuracy", "method": ""}
        frames.append(rows.assign(**named, mean=accuracy))
        named = {"facet": "faithfulness", "metric": "irof", "method": "grad_cam"}
        frames.append(rows.assign(**named, mean=2 * accuracy + rng.normal(0, 0.02, sweep.size)))
    p = sensitivity.at_equal_accuracy(pd.concat(frames, ignore_index=True), "cross_entropy")["p"].dropna()
    assert len(p) > 0.8 * sweeps
    assert np.mean(p < 0.05) <= 0.07


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    out = tmp_path_factory.mktemp("sensitivity")
    known.write(out, protocols=("corrected", "published"))
    opened = results.open_results(str(out), "demo")
    means, views = tables.seed_means(opened), view_scores.read(opened)
    compared = comparisons.table(means, views, "cross_entropy", same_seeds=True)
    return opened, means, compared, sensitivity.table(means, views, compared, "cross_entropy")


def row_of(found: pd.DataFrame, check: str, metric: str = "complexity") -> pd.Series:
    rows = found[(found["check"] == check) & (found["objective_label"] == "supcon τ=0.5") & (found["metric"] == metric)
                 & (found["method"] == "grad_cam") & (found["protocol"] == "corrected")]  # fmt: skip
    assert len(rows) == 1
    return rows.iloc[0]


def test_other_images_are_those_of_the_store(sweep):
    opened, _, compared, found = sweep
    rows = results.load(str(opened.store.root).rsplit("/", 1)[0], "demo", protocol="corrected")
    rows = rows[(rows["metric"] == "complexity") & (rows["method"] == "grad_cam")]
    for check, counted in (("own images", rows[rows["correct"]]), ("all images", rows)):
        by_trial = counted.groupby(["objective_label", "seed"], observed=True)["value"].mean()
        row = row_of(found, check)
        oracle = statistics.welch(by_trial["supcon τ=0.5"].to_numpy(), by_trial["cross_entropy"].to_numpy())
        np.testing.assert_allclose(row[["difference", "low", "high", "p"]].astype(float), oracle, rtol=1e-5)
        assert row["images"] == pytest.approx(counted.groupby("trial", observed=True).size().mean())
    main = row_of(found, "as compared")
    same = compared[(compared["protocol"] == "corrected") & (compared["metric"] == "complexity")
                    & (compared["method"] == "grad_cam") & (compared["objective_label"] == "supcon τ=0.5")]  # fmt: skip
    assert (main["difference"], main["p_holm"]) == pytest.approx((same["difference"].iloc[0], same["p_holm"].iloc[0]))
    assert main["verdict"] == "better"
    assert main["same"]


def test_the_other_protocol_stands_beside(sweep):
    found = sweep[3]
    row = row_of(found, "published protocol")
    published = found[(found["protocol"] == "published") & (found["check"] == "as compared")
                      & (found["metric"] == "complexity") & (found["method"] == "grad_cam")
                      & (found["objective_label"] == "supcon τ=0.5")].iloc[0]  # fmt: skip
    assert (row["difference"], row["p"]) == (published["difference"], published["p"])
    assert row["same"] == (row["verdict"] == row_of(found, "as compared")["verdict"])


def test_what_cannot_be_told_is_neither_same_nor_other(sweep):
    row = row_of(sweep[3], "equal accuracy")
    assert row["note"] == "accuracy does not vary between networks of the same recipe"
    assert row["same"] is pd.NA
    assert row["verdict"] == "not decided"


def test_the_verdict_as_compared_is_the_main_one(sweep):
    """Each check's p-values stand in the family of all comparisons, accuracy's among them: less to compare, as where
    one metric alone has raw probabilities, decides nothing."""
    _, _, compared, found = sweep
    keys = [*VIEW, *MEASURE, "objective_label"]
    both = found[found["check"] == "as compared"].merge(compared, on=keys, suffixes=("", "_main"))
    assert len(both) == (compared["facet"] != "accuracy").sum()
    np.testing.assert_allclose(both["p_holm"], both["p_holm_main"])
    other = found[found["check"] == "published protocol"].assign(protocol="published")
    both = other.merge(compared, on=keys, suffixes=("", "_main"))
    assert len(both)
    np.testing.assert_allclose(both["p_holm"], both["p_holm_main"])

    means, rng = means_of({"cross_entropy": [0.9] * 3, "supcon": [0.9] * 3}, 0.0, noise=0.0), np.random.default_rng(1)
    scored = means[means["facet"] != "accuracy"]
    noise = rng.normal(0, 0.01, len(scored))
    means = pd.concat(
        [means[means["facet"] == "accuracy"]]
        + [
            scored.assign(metric=metric, mean=scored["mean"] + noise)
            for metric in ("auc", "auc[probability=raw]", *(f"other{number}" for number in range(40)))
        ]
    )
    compared = comparisons.compare(means, [*VIEW, *MEASURE], "cross_entropy", VIEW)
    found = sensitivity.table(means, [], compared, "cross_entropy")
    raw = found[found["check"] == "raw probabilities"].iloc[0]
    assert raw["p"] < 0.05 < raw["p_holm"]
    assert raw["same"]


def test_raw_probabilities_are_set_beside_calibrated_ones():
    rows = []
    for metric, shift in (("pixel_flipping_auc[noise=1]", 0.0), ("pixel_flipping_auc[noise=1,probability=raw]", 0.2)):
        means = means_of(OVERLAPPING, 0.0, metric=metric)
        means["mean"] += shift * ((means["objective_label"] == "supcon") & (means["facet"] != "accuracy"))
        rows.append(means[(means["facet"] != "accuracy") | (shift == 0)])
    means = pd.concat(rows, ignore_index=True)
    compared = comparisons.compare(means, [*VIEW, *MEASURE], "cross_entropy", VIEW)
    found = sensitivity.table(means, [], compared, "cross_entropy")
    raw = found[found["check"] == "raw probabilities"].set_index("objective_label")
    assert set(raw["metric"]) == {"pixel_flipping_auc[noise=1]"}
    assert raw.loc["supcon", "difference"] == pytest.approx(0.25, abs=0.01)
