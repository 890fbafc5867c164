"""The published numbers beside ours, where a sweep's trials follow the recipes of the published study."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from scl_ray.report import published_numbers, statistics
from scl_ray.report.published_numbers import Published
from scl_ray.report.terms import MEASURE, VIEW
from scl_ray.results import Results

_COLUMNS = [*VIEW, *MEASURE, "direction", "objective_label", "published", "published_spread", "published_low",
            "published_high", "mean", "low", "high", "seeds", "images", "agrees", "published_difference",
            "difference", "difference_low", "difference_high", "same_direction"]  # fmt: skip


def table(
    means: pd.DataFrame, compared: pd.DataFrame, reference: str, recipes: Mapping[str, tuple[str, str]]
) -> pd.DataFrame:
    """One row a published number that this sweep measures, under each protocol; none when no objective's trials follow
    a recipe of the study (told by dataset, backbone, objective and training, whatever the sweep is called).

    *means*: `tables.seed_means`; *compared*: `comparisons.compare` of them with the *reference*; *recipes*: the study's
    by objective_label, `recipes_of`. Columns: backbone,
    protocol, facet, metric, method, direction, objective_label;
    published, published_spread (over five seeds, nan where none is printed), published_low, published_high (Student's
    interval over five seeds, widened by the rounding of mean and spread; of the rounding alone without a spread);
    mean, low, high (ours, Student's interval over seeds), seeds, images (that a trial's mean is of, on average);
    agrees: whether the two intervals overlap (missing where ours cannot be told);
    published_difference from the reference where that follows the study too, difference, difference_low and
    difference_high: ours, and same_direction: whether our interval lies on the published difference's side of zero
    (missing without an interval).
    """
    keys = [*VIEW, *MEASURE, "direction"]
    rows = []
    for names, trials in means.groupby([*keys, "objective_label"], sort=False):
        *key, label = map(str, names)
        found = _of(recipes.get(label), key[3], key[4])
        if found is None:
            continue
        ours = statistics.mean_over_seeds(trials["mean"].to_numpy(float))
        low, high = _interval(found)
        agrees = pd.NA if np.isnan(ours.low) else bool(ours.low <= high and low <= ours.high)
        of_reference = _of(recipes.get(reference), key[3], key[4]) if label != reference else None
        apart = np.nan if of_reference is None else round(found.mean - of_reference.mean, 6)
        spread = np.nan if found.spread is None else found.spread
        rows.append((*key, label, found.mean, spread, low, high, *map(float, ours), int(trials["mean"].count()),
                     trials["images"].mean(), agrees, apart))  # fmt: skip
    table = pd.DataFrame(rows, columns=_COLUMNS[: _COLUMNS.index("difference")]).astype({"agrees": "boolean"})
    differences = compared[[*keys, "objective_label", "difference", "low", "high"]]
    differences = differences.rename(columns={"low": "difference_low", "high": "difference_high"})
    table = table.merge(differences, "left", [*keys, "objective_label"])
    beyond = (table["difference_low"] > 0) * 1 - (table["difference_high"] < 0) * 1
    told = table["difference_low"].notna() & table["published_difference"].notna()
    table["same_direction"] = (beyond == np.sign(table["published_difference"])).astype("boolean").where(told)
    return table[_COLUMNS]


def recipes_of(results: Results) -> dict[str, tuple[str, str]]:
    """The study's recipe (dataset, objective) of each objective whose trials all follow it, by objective_label."""
    found: dict[str, set[tuple[str, str] | None]] = {}
    for trial, label in results.trials[["trial", "objective_label"]].astype(str).itertuples(index=False):
        recipe = published_numbers.recognised(results.records[trial]["configuration"])
        found.setdefault(label, set()).add(recipe)
    return {label: recipe for label, (recipe, *others) in found.items() if recipe is not None and not others}


def _of(recipe: tuple[str, str] | None, metric: str, method: str) -> Published | None:
    known = published_numbers.numbers(*recipe) if recipe else []
    return next((number for number in known if (number.metric, number.method) == (metric, method)), None)


def _interval(published: Published) -> tuple[float, float]:
    """Where the study's mean may lie, as far as what is printed tells."""
    from scipy.special import stdtrit

    half = published.rounding
    if published.spread is not None:
        seeds = published_numbers.SEEDS
        quantile = stdtrit(seeds - 1, 1 - statistics.ALPHA / 2)
        half += float(quantile) * (published.spread + published.rounding) / np.sqrt(seeds)
    return published.mean - half, published.mean + half
