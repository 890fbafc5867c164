"""Published numbers beside ours, for sweeps that follow the study's recipes and for no other."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from scl_ray import config
from scl_ray.report import comparisons, published_numbers, reproduction
from scl_ray.report.terms import MEASURE, VIEW

SWEEPS = Path(__file__).parents[2] / "sweeps"
RECIPES = {"cross_entropy": ("cifar10", "cross_entropy"), "supcon τ=0.07": ("cifar10", "supcon")}


@pytest.mark.parametrize("dataset", ["cifar10", "imagenet_s50"])
def test_the_papers_sweeps_are_recognised_by_their_configuration(dataset):
    sweep = config.load(SWEEPS / f"paper_{dataset}.yaml", name="another_name")
    for trial in sweep.trials():
        assert published_numbers.recognised(trial.configuration()) == (dataset, trial.objective.name)
    wanted = {(metric, method) for objective in ("cross_entropy", "supcon", "triplet")
              for metric, method, *_ in published_numbers.numbers(dataset, objective) if method}  # fmt: skip
    # Every published number is measured by the sweep that repeats the study.
    specs = {"protocol=published"}
    measured = {(metric, method) for metric in sweep.evaluation.metrics for method in sweep.evaluation.methods}
    plain = {(_without(metric, specs), _without(method, specs)) for metric, method in measured}
    assert wanted <= plain


def _without(spec: str, dropped: set[str]) -> str:
    name, _, rest = spec.partition("[")
    kept = [part for part in rest.rstrip("]").split(",") if part and part not in dropped]
    return f"{name}[{','.join(kept)}]" if kept else name


def recognised(name: str, *overrides: str) -> set[tuple[str, str, tuple[str, str]]]:
    found = {(trial.backbone, trial.objective_label, published_numbers.recognised(trial.configuration()))
             for trial in config.load(SWEEPS / f"{name}.yaml", overrides).trials()}  # fmt: skip
    return {entry for entry in found if entry[2] is not None}


def test_other_recipes_are_not_recognised():
    assert recognised("demo") == set()
    assert recognised("full_grid") == {
        ("resnet18", "cross_entropy", ("cifar10", "cross_entropy")),
        ("resnet18", "supcon τ=0.07", ("cifar10", "supcon")),
        ("resnet18", "triplet margin=0.3", ("cifar10", "triplet")),
    }
    assert recognised("paper_imagenet_s50", "training.epochs=3") == set()
    assert recognised("paper_imagenet_s50", "grid.backbone=resnet18") == set()
    assert recognised("paper_imagenet_s50", "dataset.image_size=64") == set()
    assert len(recognised("paper_imagenet_s50", "grid.seed=9")) == 3


def means_of(values: dict[tuple[str, str], list[float]], metric: str = "pixel_flipping_auc") -> pd.DataFrame:
    rows = [("resnet18", protocol, "faithfulness", metric, "grad_cam", "lower", label, seed, value, 100 + seed)
            for (protocol, label), of_seeds in values.items() for seed, value in enumerate(of_seeds)]  # fmt: skip
    return pd.DataFrame(rows, columns=[*VIEW, *MEASURE, "direction", "objective_label", "seed", "mean", "images"])


def table(means: pd.DataFrame) -> pd.DataFrame:
    compared = comparisons.compare(means, [*VIEW, *MEASURE], "cross_entropy", VIEW)
    found = reproduction.table(means, compared, "cross_entropy", RECIPES)
    return found.set_index(["protocol", "objective_label"])


def test_published_numbers_stand_beside_ours():
    ours = [0.36, 0.37, 0.38]
    found = table(means_of({
        ("published", "cross_entropy"): ours, ("published", "supcon τ=0.07"): [0.25, 0.26, 0.27],
        ("corrected", "cross_entropy"): [0.55, 0.56, 0.57], ("corrected", "supcon τ=0.07"): [0.60, 0.62, 0.64],
        ("corrected", "simclr"): ours,
    }))  # fmt: skip
    assert len(found) == 4
    row = found.loc[("published", "cross_entropy")]
    assert (row["published"], row["published_spread"]) == (0.37, 0.01)
    # 0.37 ± 0.01 over five seeds, both rounded to two digits.
    half = 0.005 + stats.t.ppf(0.975, 4) * 0.015 / np.sqrt(5)
    assert (row["published_low"], row["published_high"]) == pytest.approx((0.37 - half, 0.37 + half))
    assert (row["low"], row["high"]) == pytest.approx(stats.t.interval(0.95, 2, 0.37, stats.sem(ours)))
    assert (row["seeds"], row["images"]) == (3, 101)
    assert row["agrees"]
    assert np.isnan(row["published_difference"])
    supcon = found.loc[("published", "supcon τ=0.07")]
    assert supcon["published_difference"] == pytest.approx(-0.10)
    assert supcon["difference"] == pytest.approx(-0.11)
    assert supcon["same_direction"]
    assert not found.loc[("corrected", "cross_entropy"), "agrees"]
    assert not found.loc[("corrected", "supcon τ=0.07"), "same_direction"]


def test_one_seed_agrees_with_nothing_and_denies_nothing():
    found = table(means_of({("published", "cross_entropy"): [0.37], ("published", "supcon τ=0.07"): [0.27]}))
    assert found["agrees"].isna().all()
    assert found["same_direction"].isna().all()


def test_without_a_recipe_there_is_no_table():
    means = means_of({("published", "cross_entropy"): [0.37, 0.38]}, metric="irof")
    assert table(means).empty
