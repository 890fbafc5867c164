"""Comparisons with the reference objective, from seeds to a decision."""

import numpy as np
import pandas as pd
import pytest
from report import known_sweep as known
from statsmodels.stats.multitest import multipletests

from scl_ray import results
from scl_ray.report import comparisons, image_statistics, statistics, tables, terms, view_scores


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


def test_a_seed_that_one_side_lacks_pairs_with_none():
    means = means_of(5)
    wide = comparisons.by_seed(
        means[~((means["objective_label"] == "other") & (means["seed"] == 2))], ["view", "metric"]
    )
    assert list(wide.measures["metric"]) == ["one", "two"]
    assert wide.values["other"].shape == wide.values["reference"].shape == (2, 5)
    np.testing.assert_array_equal(np.isnan(wide.values["other"]), [[False, False, True, False, False]] * 2)
    np.testing.assert_allclose(wide.values["reference"][0], 0.5 + 0.01 * np.arange(5))


def test_without_the_reference_nothing_is_compared():
    assert comparisons.compare(means_of(3), ["view", "metric"], "absent", ["view"]).empty
    assert comparisons.compare(means_of(0), ["view", "metric"], "reference", ["view"]).empty


def test_objectives_that_share_no_backbone_with_the_reference_are_not_compared():
    rows = [(backbone, label, seed) for backbone, labels in (("a", ["reference"]), ("b", ["one", "other"]))
            for label in labels for seed in range(3)]  # fmt: skip
    means = pd.DataFrame(rows, columns=["backbone", "objective_label", "seed"]).assign(
        protocol="corrected", facet="complexity", metric="complexity", method="grad_cam", direction="lower", mean=0.5
    )
    assert comparisons.table(means, [], "reference", same_seeds=True).empty
    # The others still are.
    third = means[means["objective_label"] == "one"].assign(backbone="a", mean=[0.1, 0.2, 0.3])
    found = comparisons.table(pd.concat([means, third]), [], "reference", same_seeds=True)
    assert [*found["objective_label"], *found["backbone"]] == ["one", "a"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> tuple[pd.DataFrame, list[view_scores.ViewScores]]:
    out = tmp_path_factory.mktemp("comparisons")
    known.write(out, seeds=(0, 1, 2, 3))
    opened = results.open_results(str(out), "demo")
    return tables.seed_means(opened), view_scores.read(opened)


@pytest.fixture(scope="module")
def full(sweep) -> pd.DataFrame:
    means, views = sweep
    return comparisons.table(means, views, "cross_entropy", same_seeds=True)


def row_of(table: pd.DataFrame, label: str, metric: str, method: str = "grad_cam") -> pd.Series:
    rows = table[(table["objective_label"] == label) & (table["metric"] == metric) & (table["method"] == method)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_every_column_of_a_comparison(sweep, full):
    means, views = sweep
    row = row_of(full, "supcon τ=0.5", "complexity")
    sides = [means.loc[(means["objective_label"] == label) & (means["metric"] == "complexity")
                       & (means["method"] == "grad_cam"), "mean"].to_numpy()
             for label in ("supcon τ=0.5", "cross_entropy")]  # fmt: skip
    assert (row["seeds"], row["reference_seeds"], row["reference"]) == (4, 4, "cross_entropy")
    np.testing.assert_allclose(row[["difference", "low", "high", "p"]].astype(float), statistics.welch(*sides))
    np.testing.assert_allclose(row[["ratio", "ratio_low", "ratio_high"]].astype(float), statistics.ratio(*sides))
    np.testing.assert_allclose(row[["g", "g_low", "g_high"]].astype(float), statistics.standardised(*sides))
    np.testing.assert_allclose(row[["bootstrap_low", "bootstrap_high"]].astype(float), statistics.bootstrap(*sides)[1:])
    np.testing.assert_allclose(
        row[["paired_low", "paired_high", "p_paired"]].astype(float), statistics.paired(*sides)[1:]
    )
    place = views[0].measures.index[(views[0].measures["metric"] == "complexity")
                                    & (views[0].measures["method"] == "grad_cam")][0]  # fmt: skip
    scored = [views[0].values[place, views[0].rows(label)][:, views[0].common]
              for label in ("supcon τ=0.5", "cross_entropy")]  # fmt: skip
    superiority = image_statistics.superiority(scored[0], scored[1], "lower")
    assert row["superiority"] == superiority.estimate > 0.9
    assert row["p_mixed"] == image_statistics.mixed_model(*scored).p
    assert row["p_published"] == image_statistics.published(*scored).p < row["p"]
    assert row["seeds_needed"] <= row["seeds"]  # it is decided
    assert row["verdict"] == "better"


def test_seeds_needed_is_at_the_level_that_holm_sets(sweep, full):
    means, _ = sweep
    hopeless = row_of(full, "triplet margin=0.3", "ssim_continuity")
    assert hopeless["verdict"] == "not decided"
    assert hopeless["seeds_needed"] > 50
    levels = statistics.holm_levels(full["p"].to_numpy())
    wide = comparisons.by_seed(means, [*terms.VIEW, *terms.MEASURE])
    place = wide.measures.index[
        (wide.measures["metric"] == "ssim_continuity") & (wide.measures["method"] == "grad_cam")
    ]
    sides = [wide.values[label][place[0]] for label in ("triplet margin=0.3", "cross_entropy")]
    assert hopeless["seeds_needed"] == statistics.seeds_needed(*sides, levels[hopeless.name])


def test_accuracy_has_no_statistics_of_images_and_numbered_networks_do_not_pair(sweep):
    means, views = sweep
    full = comparisons.table(means, views, "cross_entropy", same_seeds=False)
    accuracy = row_of(full, "supcon τ=0.5", "accuracy", "")
    assert np.isnan(accuracy[["superiority", "p_mixed", "p_published"]].astype(float)).all()
    assert full["p_paired"].isna().all()
    assert full["p_published"].notna().any()
