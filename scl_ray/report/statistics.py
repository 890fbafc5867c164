"""Comparing objectives: the seed is the unit of replication, never the image.

Images of one network are not independent samples of a training recipe, so a test over images finds anything
significant. Here a network is one number per measure (its mean over images) and objectives are compared by their
networks.
"""

import warnings
from typing import NamedTuple

import numpy as np
import pandas as pd

ALPHA = 0.05
FEWEST_SEEDS = 3  # two points say too little about their own spread for any verdict


class Welch(NamedTuple):
    """Difference of two means with its two-sided 95 % interval and p-value (nan where they cannot be told)."""

    difference: float
    low: float
    high: float
    p: float


def welch(values: np.ndarray, reference: np.ndarray) -> Welch:
    """Welch's t-test of *values* against *reference*, one number a seed each (Welch, Biometrika 34, 1947).

    Interval and p-value are nan below two seeds on either side, and where neither side varies.
    """
    from scipy import stats

    values, reference = values[~np.isnan(values)], reference[~np.isnan(reference)]
    if min(len(values), len(reference)) == 0:
        return Welch(np.nan, np.nan, np.nan, np.nan)
    difference = float(values.mean() - reference.mean())
    if min(len(values), len(reference)) < 2 or (np.ptp(values) == 0 and np.ptp(reference) == 0):
        return Welch(difference, np.nan, np.nan, np.nan)
    with warnings.catch_warnings():
        # Seeds that reach the very same accuracy do not vary; scipy suspects a loss of precision.
        warnings.filterwarnings("ignore", "Precision loss occurred", RuntimeWarning)
        test = stats.ttest_ind(values, reference, equal_var=False)
        low, high = test.confidence_interval(1 - ALPHA)
    return Welch(difference, float(low), float(high), float(test.pvalue))


def holm(p: np.ndarray) -> np.ndarray:
    """p-values adjusted for the number of comparisons (Holm, Scand. J. Stat. 6, 1979); nan stays nan and is no member
    of the family."""
    adjusted = np.full(len(p), np.nan)
    told = np.flatnonzero(~np.isnan(p))
    ascending = told[np.argsort(p[told], kind="stable")]
    raised = p[ascending] * np.arange(len(ascending), 0, -1)
    adjusted[ascending] = np.minimum(np.maximum.accumulate(raised), 1.0)
    return adjusted


def over_seeds(means: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The mean and the spread (standard deviation, n - 1) over seeds of the trials' means, by *keys*.

    Columns beside the keys: mean, spread (nan for one seed), seeds (with a defined mean), images, undefined (both
    summed over seeds).
    """
    return means.groupby(keys, observed=True, sort=False, as_index=False).agg(
        mean=("mean", "mean"), spread=("mean", "std"), seeds=("mean", "count"),
        images=("images", "sum"), undefined=("undefined", "sum"))  # fmt: skip


def compare(means: pd.DataFrame, keys: list[str], reference: str, family: list[str]) -> pd.DataFrame:
    """Every objective's measures against the *reference* objective's.

    *means* has one row a trial and measure: ``objective_label``, the *keys* that name a measure, ``direction`` and
    ``mean``. Holm's correction runs over all comparisons that share *family* (columns among the keys).

    Columns: objective_label, the keys, difference, low, high, p, p_holm, verdict: ``better`` or ``worse`` than the
    reference (by the measure's direction), or ``not decided``: p_holm of 0.05 or more, or fewer than three seeds.
    """
    rows = []
    for key, measure in means.groupby(keys, observed=True, sort=False):
        by_objective = {
            str(label): seeds.to_numpy(float)
            for label, seeds in measure.groupby("objective_label", observed=True, sort=False)["mean"]
        }
        if reference not in by_objective:
            continue
        base = by_objective.pop(reference)
        for label, values in by_objective.items():
            seeds = min(np.count_nonzero(~np.isnan(side)) for side in (values, base))
            rows.append((label, *key, measure["direction"].iloc[0], seeds, *welch(values, base)))
    columns = ["objective_label", *keys, "direction", "fewest_seeds", *Welch._fields]
    table = pd.DataFrame(rows, columns=columns)
    table["p_holm"] = np.nan
    for _, members in table.groupby(family, sort=False):
        table.loc[members.index, "p_holm"] = holm(members["p"].to_numpy(float))
    decided = (table["p_holm"] < ALPHA) & (table["fewest_seeds"] >= FEWEST_SEEDS)
    improved = (table["difference"] < 0) == (table["direction"] == "lower")
    table["verdict"] = np.where(decided, np.where(improved, "better", "worse"), "not decided")
    return table.drop(columns=["direction", "fewest_seeds"])
