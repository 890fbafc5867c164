"""The report's tables, checked by hand against a sweep of known truth."""

import numpy as np
import pandas as pd
import pytest
from report import known_sweep as known
from scipy import stats

from scl_ray import results
from scl_ray.report import tables, terms


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("tables")
    known.write(out)
    return tables.make(results.open_results(str(out), "demo"))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    out = tmp_path_factory.mktemp("both")
    known.write(out, protocols=("corrected", "published"), failed=(("triplet margin=0.3", 2),))
    return tables.make(results.open_results(str(out), "demo"))


def measure(table: pd.DataFrame, label: str, metric: str, method: str = "grad_cam") -> pd.Series:
    rows = table[(table["objective_label"] == label) & (table["metric"] == metric) & (table["method"] == method)]
    assert len(rows) == 1
    return rows.iloc[0]


@pytest.mark.parametrize("metric", list(known.TRUTH))
def test_means_and_spreads_are_the_truth(made, metric):
    for label, truth in zip(known.OBJECTIVES, known.TRUTH[metric], strict=True):
        row = measure(made.measures, label, metric)
        assert row["mean"] == pytest.approx(truth, abs=1e-6)
        assert row["spread"] == pytest.approx(known.STEP.get(metric, 0.01), rel=1e-4)
        assert row["seeds"] == 3


def test_the_comparison_is_with_cross_entropy_over_seed_means(made):
    row = measure(made.measures, "supcon τ=0.07", "pixel_flipping_auc")
    assert made.reference == "cross_entropy"
    assert row["difference"] == pytest.approx(0.262 - 0.371, abs=1e-6)
    # Both sides: three seeds, standard deviation 0.01; so 4 degrees of freedom.
    half = stats.t.ppf(0.975, 4) * np.sqrt(2 * 0.01**2 / 3)
    assert (row["low"], row["high"]) == pytest.approx((-0.109 - half, -0.109 + half), rel=1e-3)
    assert row["verdict"] == "better"
    assert measure(made.measures, "supcon τ=0.07", "ssim_contrastivity")["verdict"] == "worse"
    assert measure(made.measures, "triplet margin=0.3", "ssim_continuity")["verdict"] == "not decided"
    assert measure(made.measures, "cross_entropy", "complexity")["verdict"] == ""


def test_a_trial_that_is_not_scored_on_all_common_images_has_no_mean(tmp_path):
    """Scores that a kill left out, where the predictions are there: the mean of the others would be of other images."""
    store = known.write(tmp_path)
    part = store.parts("scores", known.trial_id("supcon τ=0.5", "resnet8", 1))[0]
    store.fs.rm_file(part.path)
    made = tables.make(results.open_results(str(tmp_path), "demo"))
    row = measure(made.measures, "supcon τ=0.5", "complexity")
    assert row["seeds"] == 2
    assert row["mean"] == pytest.approx(6.58, abs=1e-6)  # of the seeds at either end
    assert row["verdict"] == "not decided"
    assert measure(made.measures, "supcon τ=0.07", "complexity")["seeds"] == 3
    assert list(made.failures["status"]) == ["incomplete"]


def test_only_images_that_all_compared_trials_classify_correctly_count(made):
    common = known.common_ranks([(label, seed) for label in known.OBJECTIVES for seed in known.SEEDS])
    row = made.images.iloc[0]
    assert (row["evaluated"], row["common"], row["trials"]) == (known.IMAGES, len(common), 12)


def test_accuracy_is_over_all_images(made):
    row = measure(made.measures, "supcon τ=0.07", "accuracy", "")
    wrong = len(known.wrong_ranks("supcon τ=0.07", 0))
    assert row["mean"] == pytest.approx(1 - wrong / known.IMAGES)
    assert row["images"] == 3 * known.IMAGES


def test_undefined_values_are_counted(made):
    common = made.images["common"].iloc[0]
    assert list(made.undefined["objective_label"]) == ["supcon τ=0.07", "supcon τ=0.5"]
    assert set(made.undefined["method"] + made.undefined["metric"]) == {"eigen_camcomplexity"}
    assert list(made.undefined["undefined"]) == [3, 3]
    assert list(made.undefined["values"]) == [3 * common] * 2


def test_rows_follow_the_configuration(made):
    assert list(dict.fromkeys(made.measures["objective_label"])) == list(known.OBJECTIVES)
    assert list(dict.fromkeys(made.measures["metric"])) == ["accuracy", *known.TRUTH]
    facets = ["accuracy", "faithfulness", "continuity", "contrastivity", "complexity", "sparseness"]
    assert list(dict.fromkeys(made.measures["facet"])) == facets
    shown = terms.representative(made.measures)
    assert list(dict.fromkeys(zip(shown["metric"], shown["method"], strict=True))) == [
        ("accuracy", ""), ("pixel_flipping_auc", "grad_cam"), ("ssim_continuity", "grad_cam"),
        ("ssim_contrastivity", "grad_cam"), ("complexity", "grad_cam"), ("sparseness", "grad_cam"),
    ]  # fmt: skip


def test_a_failed_trial_is_named_and_leaves_two_seeds(both):
    assert list(both.failures["label"]) == ["triplet margin=0.3 · resnet8 · seed 2"]
    assert both.failures["status"].iloc[0] == "failed"
    assert "not finite" in both.failures["reason"].iloc[0]
    of = both.measures[both.measures["protocol"] == "corrected"]
    assert measure(of, "triplet margin=0.3", "complexity")["seeds"] == 2
    assert set(of.loc[of["objective_label"] == "triplet margin=0.3", "verdict"]) == {"not decided"}


def test_protocols_side_by_side(both):
    row = measure(both.protocols, "supcon τ=0.5", "complexity")
    assert row["change"] == pytest.approx(known.PUBLISHED_OFFSET, abs=1e-6)
    assert row["same_order"]


def test_a_trial_that_misses_scores_is_incomplete(tmp_path):
    store = known.write(tmp_path, seeds=(0,))
    trial = known.trial_id("cross_entropy", "resnet8", 0)
    for part in store.parts("scores", trial)[1:]:
        store.fs.rm_file(part.path)
    found = tables.make(results.open_results(str(tmp_path), "demo")).failures
    assert list(found["status"]) == ["incomplete"]
    cells = len(known.cells(("corrected",)))
    lost = (known.IMAGES - known.SHARD) * cells
    assert found["reason"].iloc[0] == f"{lost} of its {known.IMAGES * cells} scores are missing"


def test_backbones_are_compared_apart(tmp_path):
    known.write(tmp_path, backbones=("resnet8", "resnet20"))
    found = tables.make(results.open_results(str(tmp_path), "demo"))
    assert list(found.images["backbone"]) == ["resnet8", "resnet20"]
    assert list(found.images["trials"]) == [12, 12]
    assert set(found.measures["seeds"]) == {3}


def test_numbers_for_people():
    assert terms.number(0.2714, 0.0123, terms.decimals(pd.Series([0.2714, 0.3]))) == "0.271 ± 0.012"
    assert terms.number(6.814, np.nan, terms.decimals(pd.Series([6.814]))) == "6.81"
    assert terms.number(np.nan, np.nan, 3) == "–"
    assert terms.decimals(pd.Series([np.nan, 0.0])) == 2
    assert (terms.arrow("lower"), terms.arrow("higher")) == ("↓", "↑")


def test_every_table_rests_on_the_same_sweep(made, both):
    compared = made.comparisons
    assert len(compared) == made.measures["difference"].notna().sum() == 3 * (1 + len(known.cells(("corrected",))))
    facets = list(dict.fromkeys(made.measures["facet"]))
    assert list(dict.fromkeys(made.verdicts["facet"])) == facets
    assert len(made.verdicts) == 3 * len(facets)
    assert made.verdicts["sentence"].str.startswith(("supcon", "triplet")).all()
    merged = made.verdicts.merge(made.measures, on=[*terms.VIEW, *terms.MEASURE, "objective_label"])
    assert (merged["verdict_x"] == merged["verdict_y"]).all()
    checks = ["as compared", "own images", "all images", "equal accuracy"]
    assert list(dict.fromkeys(made.sensitivity["check"])) == checks
    assert "published protocol" in set(both.sensitivity["check"])
    assert set(made.doses["dose"]) == {0.07, 0.5}
    assert set(made.slopes["parameter"]) == {"temperature"}
    assert {"geometry/nc1", "calibration/ece", "accuracy"} <= set(made.properties["property"])
    assert "geometry/silhouette" not in set(made.properties["property"])  # null in every record
    assert set(made.methods["trials"]) == {12}
    assert set(made.agreement["trials"]) == {12}
    assert made.reproduction.empty
