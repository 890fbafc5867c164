"""Every objective against the reference objective: how much they differ, by what test, and whether it is decided."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scl_ray.report import image_statistics, statistics
from scl_ray.report.statistics import ALPHA, FEWEST_SEEDS, Values
from scl_ray.report.terms import MEASURE, VIEW
from scl_ray.report.view_scores import ViewScores

_KEYS = [*VIEW, *MEASURE]
_COMPARED = ["seeds", "reference_seeds", "difference", "low", "high", "p"]
_OF_SEEDS = ["bootstrap_low", "bootstrap_high", "ratio", "ratio_low", "ratio_high", "g", "g_low", "g_high",
             "paired_low", "paired_high", "p_paired"]  # fmt: skip
_OF_IMAGES = ["superiority", "superiority_low", "superiority_high", "mixed_low", "mixed_high", "p_mixed", "p_published"]


class BySeed(NamedTuple):
    """A number a trial as arrays.

    ``measures``: the keys and the direction of each measure; ``values``: for each objective (measures, seeds), the
    seeds of all objectives in one order, nan where there is no such trial or no value; ``measured``: (measures,)
    whether the objective has any trial there.
    """

    measures: pd.DataFrame
    values: dict[str, Values]
    measured: dict[str, NDArray[np.bool_]]


def by_seed(means: pd.DataFrame, keys: list[str], column: str = "mean") -> BySeed:
    """The *column* of *means* by measure, objective and seed, measures and objectives in the order of its rows."""
    measures = means[[*keys, "direction"]].drop_duplicates(ignore_index=True)
    place = means[[*keys, "direction"]].merge(measures.assign(place=measures.index), "left")["place"].to_numpy(int)
    seeds, seed = np.unique(means["seed"].to_numpy(int), return_inverse=True)
    labels = means["objective_label"].astype(str).to_numpy(object)
    values, measured = {}, {}
    for label in dict.fromkeys(labels):
        own = labels == label
        values[label] = np.full((len(measures), len(seeds)), np.nan)
        values[label][place[own], seed[own]] = means[column].to_numpy(float)[own]
        measured[label] = np.isin(np.arange(len(measures)), place[own])
    return BySeed(measures, values, measured)


def compare(means: pd.DataFrame, keys: list[str], reference: str, family: list[str]) -> pd.DataFrame:
    """Every objective's measures against the *reference* objective's, by Welch's test over seeds.

    *means* has one row a trial and measure: ``objective_label``, ``seed``, the *keys* that name a measure,
    ``direction`` and ``mean``. Holm's correction runs over all comparisons that share *family* (columns among the
    keys).

    Columns: objective_label, the keys, direction, seeds and reference_seeds (with a defined mean), difference, low,
    high, p, p_holm, verdict: ``better`` or ``worse`` than the reference (by the measure's direction), or ``not
    decided``: p_holm of 0.05 or more, or fewer than three seeds on a side.
    """
    wide = by_seed(means, keys)
    found = [wide.measures[:0].assign(objective_label="", **dict.fromkeys(_COMPARED, 0.0))]
    for label, there, values, base in _pairs(wide, reference):
        told = {"seeds": (~np.isnan(values)).sum(1), "reference_seeds": (~np.isnan(base)).sum(1)}
        rows = wide.measures[there].assign(objective_label=label, **told)
        found.append(rows.assign(**statistics.welch(values, base)._asdict()))
    table = pd.concat(found[1:] or found).sort_index(kind="stable").reset_index(drop=True)
    return decide(table, family)[["objective_label", *keys, "direction", *_COMPARED, "p_holm", "verdict"]]


def decide(table: pd.DataFrame, family: list[str]) -> pd.DataFrame:
    """*table* with p_holm, over the rows that share *family*, and the verdict."""
    adjusted = pd.Series(np.nan, table.index)
    for _, members in table.groupby(family, sort=False):
        adjusted[members.index] = statistics.holm(members["p"].to_numpy(float))
    decided = (adjusted < ALPHA) & (table[["seeds", "reference_seeds"]].min(axis=1) >= FEWEST_SEEDS)
    improved = (table["difference"] < 0) == (table["direction"] == "lower")
    verdict = np.where(decided, np.where(improved, "better", "worse"), "not decided")
    return table.assign(p_holm=adjusted, verdict=verdict)


def table(means: pd.DataFrame, views: Iterable[ViewScores], reference: str, *, same_seeds: bool) -> pd.DataFrame:
    """All that is known of each comparison with the *reference*: one row a view, measure and other objective.

    *means*: `tables.seed_means`. *same_seeds*: whether equal seed numbers mean equal first weights, so that they pair.

    Columns beside those of `compare` (whose family is the view), each nan where it cannot be told:

    - reference;
    - bootstrap_low, bootstrap_high: the difference's interval by `statistics.bootstrap`;
    - ratio, ratio_low, ratio_high: times the reference, `statistics.ratio`;
    - g, g_low, g_high: the difference in standard deviations over seeds, `statistics.standardised`;
    - paired_low, paired_high, p_paired: the difference by the seeds that both sides have, `statistics.paired`;
    - seeds_needed: seeds a side for a power of 80 % at Holm's level of this comparison, `statistics.seeds_needed`
      (inf: there is no difference);
    - superiority, superiority_low, superiority_high: the probability that it is better on an image,
      `image_statistics.superiority`;
    - mixed_low, mixed_high, p_mixed: for new seeds and new images, `image_statistics.mixed_model`;
    - p_published: `image_statistics.published`, anti-conservative.

    The last three are of scores on common images, so not of accuracy.
    """
    found = compare(means, _KEYS, reference, VIEW).assign(reference=reference, **dict.fromkeys(_OF_SEEDS, np.nan))
    level = pd.Series(np.nan, found.index)
    for _, members in found.groupby(VIEW, sort=False):
        level[members.index] = statistics.holm_levels(members["p"].to_numpy(float))
    needed = pd.Series(np.nan, found.index)
    for label, _, values, base in _pairs(by_seed(means, _KEYS), reference):
        rows = found.index[found["objective_label"] == label]
        resampled = [statistics.bootstrap(*sides)[1:] for sides in zip(values, base, strict=True)]
        paired = statistics.paired(values, base) if same_seeds else [np.full(len(rows), np.nan)] * 4
        found.loc[rows, _OF_SEEDS] = np.column_stack([
            np.array(resampled), *statistics.ratio(values, base), *statistics.standardised(values, base), *paired[1:],
        ])  # fmt: skip
        for row, *sides in zip(rows, values, base, level[rows], strict=True):
            needed[row] = statistics.seeds_needed(*sides)
    of_images = [row for scores in views for row in _of_images(scores, reference)]
    columns = ["objective_label", *_KEYS]
    known = pd.DataFrame(of_images, columns=[*columns, *_OF_IMAGES]).astype(dict.fromkeys(columns, str))
    return found.assign(seeds_needed=needed).astype(dict.fromkeys(columns, str)).merge(known, "left", columns)


def _pairs(wide: BySeed, reference: str) -> Iterator[tuple[str, NDArray[np.bool_], Values, Values]]:
    """Each other objective, the measures that it and the *reference* have, and their values there, seed by seed."""
    for label, values in wide.values.items():
        if label == reference or reference not in wide.values:
            continue
        there = wide.measured[label] & wide.measured[reference]
        if there.any():  # networks of the two may all differ in their backbone
            yield label, there, values[there], wide.values[reference][there]


def _of_images(scores: ViewScores, reference: str) -> Iterator[tuple[object, ...]]:
    """The rows of one view that its scores on common images give."""
    common = scores.common
    rows = {str(label): scores.rows(label) for label in scores.trials["objective_label"].unique()}
    base, seeds = rows.pop(reference, None), scores.trials["seed"].to_numpy()
    if base is None or not common.any():
        return
    for measure, values in zip(scores.measures.itertuples(index=False, name=None), scores.values, strict=True):
        *names, direction = measure
        values = values[:, common]
        for label, own in rows.items():
            sides = values[own], values[base]
            same = np.intersect1d(seeds[own], seeds[base])
            pairs = [values[side[np.isin(seeds[side], same)]] for side in (own, base)]
            mixed = image_statistics.mixed_model(*sides)
            yield (label, scores.backbone, scores.protocol, *names,
                   *image_statistics.superiority(*sides, direction), mixed.low, mixed.high, mixed.p,
                   image_statistics.published(pairs[0], pairs[1]).p)  # fmt: skip
