"""Whether a conclusion stands when what it rests on is chosen otherwise: the images, the protocol, the calibration, the
accuracy."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scl_ray import specs
from scl_ray.report import comparisons, statistics
from scl_ray.report.statistics import Values
from scl_ray.report.terms import ACCURACY, MEASURE, VIEW
from scl_ray.report.view_scores import ViewScores

AS_COMPARED = "as compared"
OWN_IMAGES = "own images"
ALL_IMAGES = "all images"
RAW_PROBABILITIES = "raw probabilities"
EQUAL_ACCURACY = "equal accuracy"
FEWEST_LEFT = 3  # degrees of freedom of a regression that says anything

_KEYS = [*VIEW, *MEASURE]
_RESULT = ["seeds", "reference_seeds", "difference", "low", "high", "p"]


def table(means: pd.DataFrame, views: Iterable[ViewScores], compared: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Each comparison of attribution quality again, one row a ``check``.

    - ``as compared``: on the images that all compared trials classify correctly;
    - ``own images``: each trial on the images that it classifies correctly itself;
    - ``all images``: each trial on all evaluated images, right or wrong;
    - ``published protocol`` or ``corrected protocol``: the other one, where both ran;
    - ``raw probabilities``: the same metric before the temperature divided the scores, where the sweep has it as
      ``probability=raw``;
    - ``equal accuracy``: at the same accuracy, by `at_equal_accuracy`.

    *means*: `tables.seed_means`; *compared*: `comparisons.compare` of them. Columns: backbone, protocol, facet, metric,
    method, direction, objective_label, check, images (how many a trial's mean is of, on average), seeds,
    reference_seeds, difference, low, high, p, p_holm (over all of the view's comparisons, with those that the check can
    tell in place of what they check: no verdict changes because there is less to compare), verdict, same (the verdict
    is that of ``as compared``; missing where it cannot be told), note (why it cannot be told).
    """
    base = compared[[*_KEYS, "direction", "objective_label", *_RESULT]].merge(_images(means), "left")
    otherwise = [rows for scores in views for rows in _other_images(scores)]
    parts = [base.assign(check=AS_COMPARED)]
    for check, rows in pd.concat(otherwise).groupby("check", sort=False) if otherwise else ():
        found = comparisons.compare(rows, _KEYS, reference, VIEW)
        parts.append(found.merge(_images(rows), "left").assign(check=check))
    parts += [_other_protocol(base), _raw_probabilities(base), at_equal_accuracy(means, reference)]
    found = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    compared_as = [*_KEYS, "objective_label"]
    families = [_decided(rows, base, compared_as) for _, rows in found.groupby("check", sort=False)]
    found = pd.concat(families or [found.assign(p_holm=np.nan, verdict="")], ignore_index=True)
    found = found[found["facet"] != ACCURACY]
    main = found.loc[found["check"] == AS_COMPARED, [*compared_as, "verdict"]]
    found = found.merge(main.rename(columns={"verdict": "main"}), "left", compared_as)
    found["same"] = (found["verdict"] == found["main"]).astype("boolean").where(found["difference"].notna())
    found["note"] = found["note"].fillna("") if "note" in found else ""
    found["place"] = found.groupby(compared_as, sort=False).ngroup()
    columns = [*_KEYS, "direction", "objective_label", "check", "images", *_RESULT, "p_holm", "verdict", "same", "note"]
    return found.sort_values("place", kind="stable", ignore_index=True)[columns]


def _decided(rows: pd.DataFrame, base: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """One check's *rows* with p_holm and verdict, in the family of all comparisons of *base*."""
    told = rows.loc[rows["p"].notna(), keys].assign(told=True)
    others = base.merge(told, "left", keys)
    family = pd.concat([rows, others[others["told"].isna()].drop(columns="told")], ignore_index=True)
    return comparisons.decide(family, VIEW)[: len(rows)]


def at_equal_accuracy(means: pd.DataFrame, reference: str) -> pd.DataFrame:
    """What would be left of each difference from the *reference* if the networks were equally accurate: an analysis of
    covariance over all trials of the view.

    A measure is a level of its recipe plus a slope on accuracy that all recipes share. The slope is what networks of
    the same recipe show that differ in their seed alone, so the recipe's own effect is not taken for accuracy's. The
    difference moves by the slope times the difference of mean accuracies; its interval holds the slope's uncertainty.
    nan, with a ``note``, where fewer than three degrees of freedom are left, accuracy does not vary within recipes, or
    the two recipes' accuracies do not overlap: what no network shows is not read off a line.
    """
    accuracy = means.loc[means["facet"] == ACCURACY, ["trial", "protocol", "mean"]].rename(columns={"mean": ACCURACY})
    trials = means[means["facet"] != ACCURACY].merge(accuracy, on=["trial", "protocol"])
    trials = trials.dropna(subset=["mean", ACCURACY])
    wide = comparisons.by_seed(trials, _KEYS)
    measured, against = wide.values, comparisons.by_seed(trials, _KEYS, ACCURACY).values
    levels = {label: (statistics.seeds_of(measured[label]), statistics.seeds_of(against[label])) for label in measured}
    apart = {label: (measured[label] - level.mean[:, None], against[label] - accurate.mean[:, None])
             for label, (level, accurate) in levels.items()}  # fmt: skip
    none = np.zeros(len(wide.measures))
    spread = sum((np.nansum(more**2, axis=1) for _, more in apart.values()), none)
    left = sum((np.maximum(level.number - 1, 0) for level, _ in levels.values()), none) - 1
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = sum((np.nansum(better * more, axis=1) for better, more in apart.values()), none) / spread
        residues = (np.nansum((better - slope[:, None] * more) ** 2, axis=1) for better, more in apart.values())
        residue = sum(residues, none) / left
    parts = []
    for label in measured if reference in measured else ():
        if label == reference:
            continue
        (own, accurate), (base, as_accurate) = levels[label], levels[reference]
        further = accurate.mean - as_accurate.mean
        note = _untold(against[label], against[reference], left, spread)
        with np.errstate(invalid="ignore", divide="ignore"):
            variance = residue * (1 / own.number + 1 / base.number + further**2 / spread)
        difference = np.where(note == "", own.mean - base.mean - slope * further, np.nan)
        found = statistics.by_t(difference, np.where(note == "", variance, np.nan), left)
        rows = wide.measures.assign(objective_label=label, seeds=own.number, reference_seeds=base.number, note=note,
                                    **found._asdict())  # fmt: skip
        parts.append(rows[wide.measured[label] & wide.measured[reference]])
    if not parts:
        return pd.DataFrame(columns=[*_KEYS, "direction", "objective_label", *_RESULT, "images", "note", "check"])
    return pd.concat(parts).merge(_images(trials), "left").assign(check=EQUAL_ACCURACY)


def _untold(own: Values, base: Values, left: Values, spread: Values) -> NDArray[np.str_]:
    """Why two recipes' accuracies (measures, seeds) cannot be made equal, or nothing, for each measure."""
    highest = [np.where(np.isnan(side), -np.inf, side).max(axis=1) for side in (own, base)]
    lowest = [np.where(np.isnan(side), np.inf, side).min(axis=1) for side in (own, base)]
    return np.select(
        [left < FEWEST_LEFT, ~(spread > 0), (lowest[0] > highest[1]) | (lowest[1] > highest[0])],
        ["too few networks", "accuracy does not vary between networks of the same recipe",
         "no network of the one is as accurate as one of the other"], "")  # fmt: skip


def _images(means: pd.DataFrame) -> pd.DataFrame:
    """How many images a trial's mean is of, on average, by measure."""
    return means.groupby(_KEYS, sort=False)["images"].mean().reset_index()


def _other_images(scores: ViewScores) -> Iterable[pd.DataFrame]:
    """The trials' means on other images than the common ones."""
    chosen = {OWN_IMAGES: scores.correct, ALL_IMAGES: np.ones_like(scores.correct)}
    for check, images in chosen.items():
        counted = images & ~np.isnan(scores.values)
        count = counted.sum(-1)
        with np.errstate(invalid="ignore"):
            mean = np.where(counted, scores.values, 0).sum(-1, dtype=float) / count
        for place, measure in enumerate(scores.measures.itertuples(index=False)):
            facet, metric, method, direction = measure
            yield scores.trials.assign(
                backbone=scores.backbone, protocol=scores.protocol, facet=facet, metric=metric, method=method,
                direction=direction, mean=mean[place], images=count[place], check=check)  # fmt: skip


def _other_protocol(base: pd.DataFrame) -> pd.DataFrame:
    """Each comparison as the other protocol has it."""
    other = base["protocol"].map({"corrected": "published", "published": "corrected"})
    keys = [*_KEYS, "direction", "objective_label"]
    return base[keys].merge(base.assign(protocol=other, check=base["protocol"] + " protocol"), on=keys)


def _raw_probabilities(base: pd.DataFrame) -> pd.DataFrame:
    """Each comparison by the same metric before calibration, where it was measured."""
    calibrated = {}
    for metric in base["metric"].unique():
        name, parameters = specs.parse(metric)
        if parameters.get("probability") == "raw":
            rest = {key: value for key, value in parameters.items() if key != "probability"}
            calibrated[metric] = specs.canonical(name, rest, {})
    raw = base[base["metric"].isin(calibrated)]
    raw = raw.assign(metric=raw["metric"].map(calibrated), check=RAW_PROBABILITIES)
    keys = [*_KEYS, "direction", "objective_label"]
    return base[keys].merge(raw, on=keys)
