"""What the verdicts say, word for word."""

import numpy as np
import pandas as pd
import pytest

from scl_ray.report import comparisons, statistics, verdicts
from scl_ray.report.terms import MEASURE, VIEW

COLUMNS = [*VIEW, *MEASURE, "direction", "objective_label", "seed", "mean"]


def means_of(label: str, metric: str, values: list[float], facet: str, direction: str, method: str = "grad_cam"):
    return [("resnet18", "corrected", facet, metric, method, direction, label, seed, value)
            for seed, value in enumerate(values)]  # fmt: skip


def found(rows: list[tuple]) -> pd.DataFrame:
    means = pd.DataFrame(rows, columns=COLUMNS).assign(images=10, undefined=0)
    measures = statistics.over_seeds(means, [*VIEW, *MEASURE, "direction", "objective_label"])
    return verdicts.table(comparisons.table(means, [], "cross_entropy", same_seeds=True), measures)


FAR = [0.36, 0.37, 0.38, 0.37, 0.36]
NEAR = [0.26, 0.27, 0.28, 0.27, 0.26]


@pytest.mark.parametrize(
    ("facet", "direction", "values", "word"),
    [("faithfulness", "lower", NEAR, "more faithful"), ("faithfulness", "higher", NEAR, "less faithful"),
     ("continuity", "higher", [1 + v for v in FAR], "more continuous"), ("complexity", "lower", NEAR, "less complex"),
     ("sparseness", "higher", NEAR, "less sparse"), ("user", "lower", NEAR, "better in user")],
)  # fmt: skip
def test_a_decided_difference_is_said_by_facet_and_direction(facet, direction, values, word):
    rows = means_of("supcon τ=0.07", "pixel_flipping_auc", values, facet, direction)
    table = found([*means_of("cross_entropy", "pixel_flipping_auc", FAR, facet, direction), *rows])
    assert len(table) == 1
    row = table.iloc[0]
    assert row["sentence"].startswith(f"supcon τ=0.07 is {word} than cross_entropy: pixel-flipping AUC of grad_cam ")
    assert row["verdict"] == ("worse" if word.startswith("less") and word != "less complex" else "better")
    assert row["support"] == "the facet's only measure"


def test_the_sentence_holds_difference_interval_seeds_and_p():
    rows = means_of("supcon τ=0.07", "pixel_flipping_auc", NEAR, "faithfulness", "lower")
    sentence = found([*means_of("cross_entropy", "pixel_flipping_auc", FAR, "faithfulness", "lower"), *rows])[
        "sentence"
    ]
    half = 2.306004 * np.sqrt(2 * 7e-5 / 5)  # Student's quantile at 8 degrees of freedom; both variances are 7e-5
    low, high = (f"−{abs(-0.1 + side * half):.3f}" for side in (-1, 1))
    assert sentence.iloc[0] == (
        "supcon τ=0.07 is more faithful than cross_entropy: pixel-flipping AUC of grad_cam "
        f"−0.100 [{low}, {high}], 5 seeds, Holm p < 0.001"
    )


def test_noise_has_no_winner_and_says_what_it_would_take():
    noise = [0.36, 0.40, 0.35, 0.37, 0.35]
    rows = means_of("triplet", "complexity", noise, "complexity", "lower")
    row = found([*means_of("cross_entropy", "complexity", FAR, "complexity", "lower"), *rows]).iloc[0]
    needed = statistics.seeds_needed(np.array(noise), np.array(FAR))
    assert row["verdict"] == "not decided"
    assert row["sentence"].startswith(
        "triplet and cross_entropy: not decided by this sweep (complexity of grad_cam −0.002 ["
    )
    assert needed - 5 > 100
    assert row["sentence"].endswith("more than 100 more seeds would be needed")
    closer = means_of("triplet", "complexity", [value - 0.012 for value in noise], "complexity", "lower")
    row = found([*means_of("cross_entropy", "complexity", FAR, "complexity", "lower"), *closer]).iloc[0]
    needed = statistics.seeds_needed(np.array(noise) - 0.012, np.array(FAR))
    assert row["sentence"].endswith(f"about {needed - 5:.0f} more seeds of each would be needed")


def test_below_three_seeds_nothing_is_decided():
    rows = [*means_of("cross_entropy", "complexity", FAR, "complexity", "lower"),
            *means_of("supcon", "complexity", NEAR[:2], "complexity", "lower")]  # fmt: skip
    row = found(rows).iloc[0]
    assert row["verdict"] == "not decided"
    assert row["sentence"].endswith("2 and 5 seeds, Holm p = 0.002): at least 3 seeds are needed, 1 more of supcon")
    one = found([*means_of("cross_entropy", "complexity", FAR[:1], "complexity", "lower"), *rows[5:6]]).iloc[0]
    assert one["sentence"] == (
        "supcon and cross_entropy: not decided by this sweep (complexity of grad_cam −0.100, 1 seed): at least 3 seeds "
        "are needed, 2 more of supcon and 2 more of cross_entropy"
    )


def test_the_other_measures_of_the_facet_are_counted():
    rows = []
    for metric, values in (("pixel_flipping_auc", NEAR), ("irof", NEAR), ("road", [v + 0.3 for v in FAR]), ("x", FAR)):
        rows += means_of("cross_entropy", metric, FAR, "faithfulness", "lower")
        rows += means_of("supcon", metric, values, "faithfulness", "lower")
    row = found(rows).iloc[0]
    assert (row["better"], row["worse"], row["undecided"]) == (2, 1, 1)
    assert row["support"] == "of the facet's 4 measures 2 better, 1 worse, 1 not decided"


def test_what_is_undefined_and_what_does_not_vary_is_said():
    rows = [*means_of("cross_entropy", "complexity", FAR[:3], "complexity", "lower"),
            *means_of("supcon", "complexity", [np.nan] * 3, "complexity", "lower")]  # fmt: skip
    assert found(rows)["sentence"].iloc[0] == (
        "supcon and cross_entropy: complexity of grad_cam is defined for no network of one of them"
    )
    same = [*means_of("cross_entropy", "accuracy", [0.9] * 3, "accuracy", "higher", ""),
            *means_of("supcon", "accuracy", [0.8] * 3, "accuracy", "higher", "")]  # fmt: skip
    assert found(same)["sentence"].iloc[0] == (
        "supcon and cross_entropy: not decided by this sweep (accuracy −0.100, 3 seeds): the networks do not differ "
        "between seeds, so there is no spread to judge by"
    )
